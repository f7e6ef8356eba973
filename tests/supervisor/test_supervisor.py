"""The supervisor with real child processes, most of which misbehave on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from prebled.core.types import WorkerId
from prebled.daemon.runtime_dir import RuntimeDir, WorkerRecord
from prebled.daemon.supervisor import Supervisor
from prebled.daemon.worker_process import process_start
from prebled.errors import NotFound
from prebled.settings import FabricSettings

HERE = Path(__file__).parent
W0, W1 = WorkerId("w0"), WorkerId("w1")
QUICK = FabricSettings(restart_first_s=0.05, restart_most_s=0.2, start_timeout_s=20, lost_after_s=0.1)
PATIENCE_S = 10.0


class Stage:
    """A supervisor over `modes[worker]`, what it told, and the marks that its workers left when they were up."""

    def __init__(self, folder: Path, settings: FabricSettings = QUICK) -> None:
        self.directory = RuntimeDir(folder / "run")
        self.directory.create()
        self.settings = settings
        self.modes = {W0: "sleeps"}
        self.marks = folder / "marks"
        self.told: list[tuple[Any, ...]] = []
        self.asked: list[WorkerId] = []
        self.on_ask: Callable[[WorkerId], bool] = lambda worker_id: False
        self._news = asyncio.Event()

    def worker_started(self, worker_id: WorkerId, pid: int, restarts: int, adopted: bool) -> None:
        self.told.append(("started", worker_id, pid, restarts, adopted))
        self._news.set()

    def worker_exited(self, worker_id: WorkerId, code: int | None) -> None:
        self.told.append(("exited", worker_id, code))
        self._news.set()

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        return [told for told in self.told if told[0] == kind]

    async def wait(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        """The `count`-th of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.all(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.all(kind)[count - 1]

    def command(self, worker_id: WorkerId) -> tuple[list[str], dict[str, str]]:
        # -I -S: half the start-up time of an interpreter.
        script = [sys.executable, "-I", "-S", str(HERE / "problem_worker.py")]
        return [*script, self.modes[worker_id], str(self.marks)], dict(os.environ)

    async def wait_up(self, count: int = 1) -> list[int]:
        """Pids of the workers that came up, once there are so many."""
        await wait_until(lambda: self.marks.exists() and self.marks.read_text().count("\n") >= count)
        return [int(line) for line in self.marks.read_text().splitlines()]

    @contextlib.asynccontextmanager
    async def running(self, **times: float) -> AsyncIterator[Supervisor]:
        def ask(worker_id: WorkerId) -> bool:
            self.asked.append(worker_id)
            return self.on_ask(worker_id)

        supervisor = Supervisor(list(self.modes), self.command, self.directory, self.settings, self, ask, **times)
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run())
            yield supervisor
            supervisor.kill_nowait()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.005)


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL)


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


def is_gone(pid: int) -> bool:
    return process_start(pid) is None


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# --- starting and stopping ----------------------------------------------------------------------------------------


async def test_workers_run_in_their_own_sessions_with_their_output_in_files(stage: Stage) -> None:
    stage.modes = {W0: "talks", W1: "talks"}
    async with stage.running():
        pids = await stage.wait_up(2)
        assert {os.getsid(pid) for pid in pids} == set(pids)
        for worker_id in (W0, W1):
            path = stage.directory.log_path(worker_id)
            await wait_until(lambda path=path: "still here" in path.read_text())
        records = stage.directory.read_records()
        assert {(r.worker_id, r.pid) for r in records} == {(t[1], t[2]) for t in stage.all("started")}
        assert {r.started for r in records} == {process_start(pid) for pid in pids}
    assert all(is_gone(pid) for pid in pids)
    assert stage.directory.read_records() == []


async def test_a_worker_that_heeds_stop_gets_no_signal(stage: Stage) -> None:
    async with stage.running() as supervisor:
        (pid,) = await stage.wait_up()

        def heed(worker_id: WorkerId) -> bool:
            os.kill(pid, signal.SIGUSR1)  # stands for the worker's own exit: another number than our signals
            return True

        stage.on_ask = heed
        supervisor.stop_nowait()
        assert await stage.wait("exited") == ("exited", W0, -signal.SIGUSR1)
    assert stage.asked == [W0]


async def test_a_worker_that_is_not_connected_gets_sigterm_at_once(stage: Stage) -> None:
    async with stage.running(stop_s=60) as supervisor:
        await stage.wait_up()
        supervisor.stop_nowait()
        assert await stage.wait("exited") == ("exited", W0, -signal.SIGTERM)


async def test_one_that_heeds_neither_stop_nor_sigterm_is_killed(stage: Stage) -> None:
    stage.modes[W0] = "obstinate"
    stage.on_ask = lambda worker_id: True
    async with stage.running(stop_s=0.1, term_s=0.1) as supervisor:
        await stage.wait_up()
        supervisor.stop_nowait()
        assert await stage.wait("exited") == ("exited", W0, -signal.SIGKILL)


async def test_killing_waits_for_nothing(stage: Stage) -> None:
    stage.modes[W0] = "obstinate"
    stage.on_ask = lambda worker_id: True
    async with stage.running(stop_s=60, term_s=60) as supervisor:
        await stage.wait_up()
        supervisor.stop_nowait()
        await wait_until(lambda: stage.asked == [W0])
        supervisor.kill_nowait()
        assert await stage.wait("exited") == ("exited", W0, -signal.SIGKILL)


async def test_what_a_dead_worker_left_running_is_killed(stage: Stage) -> None:
    stage.modes[W0] = "parent"
    async with stage.running():
        (pid,) = await stage.wait_up()
        child = int(stage.directory.log_path(W0).read_text().split()[1])
        os.kill(pid, signal.SIGKILL)
        await stage.wait("exited")
        await wait_until(lambda: is_gone(child))


# --- restarting ---------------------------------------------------------------------------------------------------


async def test_a_dead_worker_is_started_again(stage: Stage) -> None:
    stage.modes[W0] = "dies-later"
    async with stage.running():
        first = await stage.wait("started")
        assert await stage.wait("exited") == ("exited", W0, -signal.SIGSEGV)
        second = await stage.wait("started", 2)
        assert first[3:] == (0, False)
        assert second[3:] == (1, False)
        assert second[2] != first[2]


async def test_one_that_exits_at_once_is_restarted_ever_more_rarely(stage: Stage) -> None:
    stage.modes[W0] = "exits"
    times: list[float] = []
    async with stage.running():
        for count in range(1, 5):
            assert await stage.wait("exited", count) == ("exited", W0, 3)
            exited_at = time.monotonic()
            await stage.wait("started", count + 1)
            times.append(time.monotonic() - exited_at)
    assert all(took > delay - 0.01 for took, delay in zip(times, (0.05, 0.1, 0.2, 0.2), strict=True))


async def test_a_command_that_cannot_be_run_is_tried_again(stage: Stage, tmp_path: Path) -> None:
    good = stage.command
    attempts: list[WorkerId] = []

    def command(worker_id: WorkerId) -> tuple[list[str], dict[str, str]]:
        attempts.append(worker_id)
        return good(worker_id) if len(attempts) == 3 else ([str(tmp_path / "nowhere")], {})

    stage.command = command  # type: ignore[method-assign]
    async with stage.running():
        await stage.wait("started")
    assert len(attempts) == 3


async def test_a_worker_that_never_gets_ready_is_replaced(tmp_path: Path) -> None:
    stage = Stage(tmp_path, FabricSettings(restart_first_s=0.01, start_timeout_s=0.3))
    async with stage.running() as supervisor:
        await stage.wait_up()
        supervisor.worker_seen(W0)  # it dials in, but that is not enough
        assert await stage.wait("exited") == ("exited", W0, -signal.SIGTERM)
        await stage.wait("started", 2)


async def test_a_ready_worker_may_stay(tmp_path: Path) -> None:
    stage = Stage(tmp_path, FabricSettings(start_timeout_s=0.2, lost_after_s=0.05))
    async with stage.running() as supervisor:
        await stage.wait("started")
        supervisor.worker_seen(W0)
        supervisor.worker_ready(W0)
        await asyncio.sleep(0.4)
        assert stage.all("exited") == []


async def test_a_live_worker_that_is_lost_for_good_is_replaced(stage: Stage) -> None:
    async with stage.running() as supervisor:
        await stage.wait_up()
        supervisor.worker_seen(W0)
        supervisor.worker_ready(W0)
        supervisor.worker_lost(W0)
        await stage.wait("exited")
        await stage.wait("started", 2)


async def test_a_lost_worker_that_comes_back_may_stay(stage: Stage) -> None:
    async with stage.running() as supervisor:
        await stage.wait_up()
        supervisor.worker_seen(W0)
        supervisor.worker_lost(W0)
        supervisor.worker_seen(W0)
        supervisor.worker_ready(W0)
        await asyncio.sleep(4 * QUICK.lost_after_s)
        assert stage.all("exited") == []


async def test_late_news_of_a_dead_worker_do_not_hurt_its_successor(stage: Stage) -> None:
    async with stage.running() as supervisor:
        (pid,) = await stage.wait_up()
        supervisor.worker_seen(W0)
        os.kill(pid, signal.SIGKILL)
        await stage.wait("started", 2)
        supervisor.worker_lost(W0)
        await asyncio.sleep(4 * QUICK.lost_after_s)
        assert len(stage.all("exited")) == 1


async def test_one_worker_can_be_restarted_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, FabricSettings(restart_first_s=60))
    stage.modes = {W0: "sleeps", W1: "sleeps"}
    async with stage.running() as supervisor:
        await stage.wait_up(2)
        supervisor.restart_nowait(W1)
        await stage.wait("started", 3)
        assert stage.all("exited") == [("exited", W1, -signal.SIGTERM)]
        with pytest.raises(NotFound, match="w9"):
            supervisor.restart_nowait(WorkerId("w9"))


async def test_a_restart_cuts_the_back_off_short(tmp_path: Path) -> None:
    stage = Stage(tmp_path, FabricSettings(restart_first_s=60))
    async with stage.running() as supervisor:
        (pid,) = await stage.wait_up()
        os.kill(pid, signal.SIGKILL)
        await stage.wait("exited")
        supervisor.restart_nowait(W0)
        await stage.wait("started", 2)
        await stage.wait_up(2)
        assert len(stage.all("exited")) == 1


# --- survivors ----------------------------------------------------------------------------------------------------


async def orphan(stage: Stage, mode: str) -> list[int]:
    """Workers of a daemon that was killed with -9; those of `mode` go on. Their pids."""
    stage.modes = {W0: mode, W1: mode}
    argv = [sys.executable, str(HERE / "orphaning_daemon.py"), str(stage.directory.path), *stage.command(W0)[0]]
    daemon = start(argv)
    try:
        pids = await stage.wait_up(2)
        await wait_until(lambda: len(stage.directory.read_records()) == 2)
    finally:
        daemon.kill()
        daemon.wait()
    assert not any(is_gone(pid) for pid in pids)
    return pids


async def test_workers_survive_a_killed_daemon_and_are_taken_over(stage: Stage) -> None:
    pids = await orphan(stage, "talks")
    stage.directory.lock()  # the dead daemon's lock is free although its workers live
    async with stage.running() as supervisor:
        await stage.wait("started", 2)
        assert sorted(told[2] for told in stage.told) == sorted(pids)
        assert all(told[3:] == (0, True) for told in stage.told)
        for worker_id in (W0, W1):
            supervisor.worker_seen(worker_id)
            supervisor.worker_ready(worker_id)
        size = stage.directory.log_path(W0).stat().st_size
        await wait_until(lambda: stage.directory.log_path(W0).stat().st_size > size)
        os.kill(pids[0], signal.SIGKILL)
        exited = await stage.wait("exited")
        assert exited[2] is None
        restarted = await stage.wait("started", 3)
        assert restarted[1] == exited[1]
        assert restarted[3:] == (1, False)
    assert all(is_gone(told[2]) for told in stage.all("started"))
    stage.directory.close()


async def test_a_survivor_that_dials_in_before_it_is_taken_over_may_stay(stage: Stage) -> None:
    await orphan(stage, "sleeps")
    async with stage.running() as supervisor:
        for worker_id in (W0, W1):  # no turn of the loop has passed
            supervisor.worker_seen(worker_id)
            supervisor.worker_ready(worker_id)
        await asyncio.sleep(4 * QUICK.lost_after_s)
        assert stage.all("exited") == []


async def test_a_survivor_that_does_not_dial_in_is_replaced(stage: Stage) -> None:
    pids = await orphan(stage, "obstinate")
    async with stage.running(term_s=0.1):
        await stage.wait("exited", 2)
        await stage.wait("started", 4)
        assert all(is_gone(pid) for pid in pids)


async def test_a_survivor_of_another_command_is_replaced(stage: Stage) -> None:
    pids = await orphan(stage, "sleeps")
    stage.modes = {W0: "talks", W1: "talks"}
    async with stage.running():
        started = [await stage.wait("started", count) for count in (1, 2)]
        assert all(told[3:] == (0, False) for told in started)
        assert all(is_gone(pid) for pid in pids)


async def test_a_survivor_that_is_not_wanted_any_more_is_ended(stage: Stage) -> None:
    await orphan(stage, "sleeps")
    records = {record.worker_id: record.pid for record in stage.directory.read_records()}
    stage.modes = {W0: "sleeps"}
    async with stage.running():
        await wait_until(lambda: is_gone(records[W1]))
        assert not is_gone(records[W0])
        await wait_until(lambda: len(stage.directory.read_records()) == 1)


async def test_a_record_whose_pid_another_process_has_now_is_not_believed(stage: Stage) -> None:
    innocent = start([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        argv = tuple(stage.command(W0)[0])
        stage.directory.write_record(WorkerRecord(W0, innocent.pid, (process_start(innocent.pid) or 0) - 1, argv))
        stage.directory.write_record(WorkerRecord(W1, innocent.pid, (process_start(innocent.pid) or 0) - 1, argv))
        async with stage.running():
            started = await stage.wait("started")
            assert started[4] is False
            await wait_until(lambda: len(stage.directory.read_records()) == 1)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


async def test_a_supervisor_that_is_cancelled_leaves_its_workers(stage: Stage) -> None:
    supervisor = Supervisor([W0], stage.command, stage.directory, QUICK, stage, lambda worker_id: False)
    task = asyncio.ensure_future(supervisor.run())
    (pid,) = await stage.wait_up()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_gone(pid)
    assert [record.pid for record in stage.directory.read_records()] == [pid]
    async with stage.running():
        assert (await stage.wait("started", 2))[4] is True
    reap(pid)
