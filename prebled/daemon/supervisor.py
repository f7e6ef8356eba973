"""Keeps the workers of a `local` daemon alive: starts them, takes over those an earlier daemon left, restarts the dead.

The rule kept here: at most one process per worker id, and none that is of no use: one that does not get ready in time,
or lives but is lost to the fabric, is ended and started anew. Workers are ended only when asked for; when the daemon
dies, even by an exception, they stay, and what is written down about them leads the next daemon to them. It knows
nothing of engines or sockets: the command is given, and whether a worker is there is told by `worker_*`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import structlog

from prebled.core.types import WorkerId
from prebled.daemon.restart_policy import RestartPolicy
from prebled.daemon.runtime_dir import RuntimeDir, WorkerRecord
from prebled.daemon.worker_process import WorkerProcess
from prebled.errors import NotFound
from prebled.settings import FabricSettings

log = structlog.get_logger()

STOP_S = 5.0
"""How long a worker that was asked to stop may take; then SIGTERM."""

TERM_S = 5.0
"""How long it may take from then on; then SIGKILL, for its whole process group."""

KILL_S = 10.0
"""How long a killed process is waited for. One that is stuck in the kernel for longer is reported and left."""

DIAL_IN_BEATS = 3.0
"""A live worker may be unseen by the fabric for so many times `lost_after_s`; then it is replaced."""

Command: TypeAlias = Callable[[WorkerId], tuple[Sequence[str], Mapping[str, str]]]
"""Arguments and the whole environment of a worker's process."""


class SupervisorListener(Protocol):
    """Called on the event loop."""

    def worker_started(self, worker_id: WorkerId, pid: int, restarts: int, adopted: bool) -> None:
        """A process was started, or found alive; it has yet to dial in. `restarts`: starts before this one."""

    def worker_exited(self, worker_id: WorkerId, code: int | None) -> None:
        """It has died. `code` as of `subprocess` (negative: the signal), None if it is not known (adopted)."""


class _Seat:
    """One worker id and what is there to be done about it. `wake` is set when any of it changes."""

    def __init__(self, worker_id: WorkerId, policy: RestartPolicy) -> None:
        self.worker_id = worker_id
        self.policy = policy
        self.wish: Literal["run", "restart", "stop"] = "run"
        self.hurry = False  # kill, do not ask
        self.wake = asyncio.Event()
        self.starts = 0
        self.is_seen = False  # by the fabric
        self.deadline: float | None = None  # loop time; for what, stands beside it
        self.deadline_reason = ""

    def expect(self, reason: str, deadline: float | None) -> None:
        """From now on this much time, for this."""
        self.deadline, self.deadline_reason = deadline, reason
        self.wake.set()


class Supervisor:
    """`ask_to_stop(worker_id)` sends a worker the fabric's Stop; False if it is not connected."""

    def __init__(
        self,
        worker_ids: Sequence[WorkerId],
        command: Command,
        directory: RuntimeDir,
        settings: FabricSettings,
        listener: SupervisorListener,
        ask_to_stop: Callable[[WorkerId], bool],
        *,
        stop_s: float = STOP_S,
        term_s: float = TERM_S,
    ) -> None:
        self._command = command
        self._directory = directory
        self._listener = listener
        self._ask_to_stop = ask_to_stop
        self._stop_s = stop_s
        self._term_s = term_s
        self._start_timeout_s = settings.start_timeout_s
        self._dial_in_s = DIAL_IN_BEATS * settings.lost_after_s
        self._seats = {
            worker_id: _Seat(worker_id, RestartPolicy(settings.restart_first_s, settings.restart_most_s))
            for worker_id in worker_ids
        }

    async def run(self) -> None:
        """Look after the workers until they are stopped; returns when the last one is gone. Cancelled: leaves them."""
        records = {record.worker_id: record for record in self._directory.read_records()}
        async with asyncio.TaskGroup() as group:
            for worker_id, record in records.items():
                if worker_id not in self._seats:
                    group.create_task(self._dismiss(record))
            for worker_id, seat in self._seats.items():
                group.create_task(self._tend(seat, records.get(worker_id)))

    def stop_nowait(self) -> None:
        """Stop all workers: `run` returns when they are gone, at most `stop_s` + `term_s` and a bit later."""
        for seat in self._seats.values():
            seat.wish = "stop"
            seat.wake.set()

    def kill_nowait(self) -> None:
        """Stop all workers without giving them time."""
        for seat in self._seats.values():
            seat.hurry = True
        self.stop_nowait()

    def restart_nowait(self, worker_id: WorkerId) -> None:
        """Stop one worker and start it again at once. Raises NotFound. Ignored while all are being stopped."""
        seat = self._seats.get(worker_id)
        if seat is None:
            raise NotFound(f"worker {worker_id!r}: not one of {', '.join(self._seats)}")
        if seat.wish == "run":
            seat.wish = "restart"
            seat.wake.set()

    def worker_seen(self, worker_id: WorkerId) -> None:
        """The fabric knows it (`worker_known`)."""
        seat = self._seats.get(worker_id)
        if seat is not None:
            seat.is_seen = True
            self._expect(seat, "did not get ready", self._start_timeout_s)

    def worker_ready(self, worker_id: WorkerId) -> None:
        """It serves."""
        seat = self._seats.get(worker_id)
        if seat is not None:
            seat.policy.ready(asyncio.get_running_loop().time())
            seat.expect("", None)

    def worker_lost(self, worker_id: WorkerId) -> None:
        """The fabric lost it; if its process lives, it is given time to come back."""
        seat = self._seats.get(worker_id)
        if seat is not None and seat.is_seen:  # else it is the news of an earlier process that died
            seat.is_seen = False
            self._expect(seat, "did not come back", self._dial_in_s)

    def _expect(self, seat: _Seat, reason: str, within_s: float) -> None:
        seat.expect(f"{reason} within {within_s:g} s", asyncio.get_running_loop().time() + within_s)

    # --- one worker ---

    async def _tend(self, seat: _Seat, record: WorkerRecord | None) -> None:
        process = await self._take_over(seat, record) if record is not None else None
        while seat.wish != "stop" or process is not None:
            process = process or self._spawn(seat)
            if process is not None:
                await self._watch(seat, process)
                process = None
            if seat.wish == "run":
                await self._pause(seat)
            if seat.wish == "restart":
                seat.wish = "run"

    async def _take_over(self, seat: _Seat, record: WorkerRecord) -> WorkerProcess | None:
        """The process that an earlier daemon left, if it is the one that we would start."""
        if record.argv != tuple(self._command(seat.worker_id)[0]):
            await self._dismiss(record)
            return None
        process = WorkerProcess.adopt(record)
        if process is None:
            self._directory.remove_record(seat.worker_id)
            return None
        self._started(seat, process)
        if not seat.is_seen:
            self._expect(seat, "did not dial in", self._dial_in_s)
        return process

    def _spawn(self, seat: _Seat) -> WorkerProcess | None:
        argv, env = self._command(seat.worker_id)
        try:
            process = WorkerProcess.spawn(argv, env, self._directory.log_path(seat.worker_id))
        except OSError as error:
            log.error("worker could not be started", worker=seat.worker_id, command=argv[0], error=str(error))
            return None
        try:
            self._directory.write_record(WorkerRecord(seat.worker_id, process.pid, process.started, tuple(argv)))
        except OSError as error:
            log.error("worker not written down: no later daemon will find it", worker=seat.worker_id, error=str(error))
        self._started(seat, process)
        seat.is_seen = False
        self._expect(seat, "did not get ready", self._start_timeout_s)
        return process

    def _started(self, seat: _Seat, process: WorkerProcess) -> None:
        process.watch(seat.wake.set)
        self._listener.worker_started(seat.worker_id, process.pid, seat.starts, process.is_adopted)
        seat.starts += 1

    async def _watch(self, seat: _Seat, process: WorkerProcess) -> None:
        """Until the process is dead and buried: by itself, as wished, or because it is late."""
        try:
            while not process.is_dead and seat.wish == "run" and not await self._wait_news(seat):
                pass
            if not process.is_dead:
                reason = "asked to" if seat.wish != "run" else seat.deadline_reason
                log.warning("worker is ended", worker=seat.worker_id, pid=process.pid, reason=reason)
                await self._end(seat, process)
        except BaseException:
            process.release()
            raise
        code = self._bury(seat.worker_id, process)
        seat.deadline = None
        self._listener.worker_exited(seat.worker_id, code)

    async def _wait_news(self, seat: _Seat) -> bool:
        """Until something changed, or the deadline has passed: then True."""
        try:
            async with asyncio.timeout_at(seat.deadline):
                await seat.wake.wait()
                seat.wake.clear()
        except TimeoutError:
            # Unless news came in the same turn and gave it more time.
            return seat.deadline is not None and asyncio.get_running_loop().time() >= seat.deadline
        return False

    async def _end(self, seat: _Seat, process: WorkerProcess) -> None:
        """Stop, SIGTERM, SIGKILL, each when the one before has not helped in time."""
        if not seat.hurry and self._ask_to_stop(seat.worker_id):
            await self._wait_death(seat, process, self._stop_s)
        if not process.is_dead and not seat.hurry:
            process.signal(signal.SIGTERM)
            await self._wait_death(seat, process, self._term_s)
        if not process.is_dead:
            log.warning("worker is killed", worker=seat.worker_id, pid=process.pid)
            process.kill_group()
            await self._wait_death(seat, process, KILL_S, patient=True)

    async def _wait_death(self, seat: _Seat, process: WorkerProcess, within_s: float, *, patient: bool = False) -> None:
        """Until the process is dead, time is up, or (unless patient) there is no more time to be given."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not process.is_dead and (patient or not seat.hurry):
                    await seat.wake.wait()
                    seat.wake.clear()

    async def _pause(self, seat: _Seat) -> None:
        """The back-off before the next start; cut short by any wish."""
        now = asyncio.get_running_loop().time()
        delay_s = seat.policy.delay_after_exit(now)
        log.info("worker will be started again", worker=seat.worker_id, in_s=delay_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                while seat.wish == "run":
                    await seat.wake.wait()
                    seat.wake.clear()

    async def _dismiss(self, record: WorkerRecord) -> None:
        """End a process that an earlier daemon left and we have no use for."""
        process = WorkerProcess.adopt(record)
        if process is not None:
            log.warning("left-over worker is ended", worker=record.worker_id, pid=process.pid)
            seat = _Seat(record.worker_id, RestartPolicy(0, 0))
            process.watch(seat.wake.set)
            await self._end(seat, process)
            self._bury(record.worker_id, process)
        else:
            self._directory.remove_record(record.worker_id)

    def _bury(self, worker_id: WorkerId, process: WorkerProcess) -> int | None:
        """Clear away a dead process; its exit code."""
        self._directory.remove_record(worker_id)
        if process.is_dead:
            return process.reap()
        log.error("worker cannot be killed and is left behind", worker=worker_id, pid=process.pid)
        process.release()
        return None
