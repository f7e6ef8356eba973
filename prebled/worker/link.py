"""The worker's side of the fabric: finds the daemon, serves it, notices when it is gone, and outlives it.

    Hello (every beat) -> Welcome -> its subscription seen, the engine loaded -> Ready -> batches, frames, ends, beats

A daemon is lost when its connection breaks, when it is silent with runs at hand, when it does not know us, or when
another life of it welcomes us. Then its runs are aborted, nothing of them is told to anyone, and we say Hello again:
whatever was on the way may be gone, so both sides start anew. Rule kept here: nothing is published before Ready, and a
daemon that has not welcomed us hears nothing but Hello and Leaving. Engine and runs are the business of `RunService`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple

import msgspec
import structlog

from prebled.core.types import Epoch, WorkerId
from prebled.errors import PrebledError, SettingsError
from prebled.messages import (
    PROTOCOL_VERSION,
    TO_WORKER,
    Abort,
    Batch,
    Beat,
    Drain,
    FromWorker,
    GetSnapshot,
    Hello,
    Introduce,
    Leaving,
    Pulse,
    Ready,
    Refused,
    Replay,
    Stop,
    ToWorker,
    Welcome,
    WorkerPhase,
    encode,
)
from prebled.settings import FabricSettings
from prebled.worker.engine import Engine
from prebled.worker.link_sockets import LinkSockets
from prebled.worker.run_service import RunService

log = structlog.get_logger()

REDIAL_S = 0.05
"""How soon to say Hello again where there was no connection to say it on."""

STOP_S = 20.0
"""How long the engine may take to stop."""


class Ending(NamedTuple):
    """Why the worker exits, and with which code: 0 as asked, 1 failed, 2 for impossible settings."""

    code: int
    reason: str


class Link:
    """One worker's life. `run` once; the other methods may be called from then on, on the same loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        address: str,
        worker_id: WorkerId,
        epoch: Epoch,
        pid: int,
        engine_name: str,
        settings: FabricSettings,
    ) -> None:
        self._engine = engine
        self._address = address
        self._hello = Hello(PROTOCOL_VERSION, worker_id, epoch, pid, engine_name)
        self._epoch = epoch
        self._settings = settings
        self._service = RunService(engine, epoch, settings, self._say, self._publish)
        self._daemon: bytes | None = None  # epoch of the daemon that welcomed us
        self._stops_when_idle = False
        self._detail = ""
        self.bad_messages = 0

    async def run(self) -> Ending:
        """Serve until told to stop, refused, alone for too long, or the engine ends. Raises SettingsError for a bad
        address. The engine is stopped in any case."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending] = loop.create_future()
        self._heard_at = loop.time()
        self._sockets = LinkSockets(self._address, self._hello.worker_id, self._hello.epoch)
        ending = Ending(1, "a bug in the worker")
        try:
            async with asyncio.TaskGroup() as group:
                parts = (
                    self._work(),
                    self._listen(),
                    self._watch_topics(),
                    self._watch_connection(),
                    self._keep_time(),
                )
                tasks = [group.create_task(self._guard(part)) for part in parts]
                ending = await self._ended
                for task in tasks:
                    task.cancel()
        finally:
            await self._part(ending.reason)
        return ending

    def drain(self, timeout_s: float) -> None:
        """Take no new runs, and stop when those at hand have ended, or the time is over."""
        self._service.is_draining = True
        self._stops_when_idle = True
        self._stop_if_idle()
        asyncio.get_running_loop().call_later(timeout_s, self.stop, f"drained for {timeout_s:g} s")
        self._beat()

    def stop(self, reason: str) -> None:
        """Abort everything and exit."""
        self._end(Ending(0, reason))

    # --- the parts, each a task ---

    async def _guard(self, part: Coroutine[Any, Any, None]) -> None:
        """A failing engine ends the worker; anything else that is raised is a bug and goes up."""
        try:
            await part
        except PrebledError as error:
            self._end(Ending(2 if isinstance(error, SettingsError) else 1, error.message))

    async def _work(self) -> None:
        capacity = await self._engine.start(self._report)
        self._service.capacity = capacity
        self._detail = ""
        log.info("engine ready", device=capacity.device, kv_tokens=capacity.kv_tokens, model=capacity.model)
        self._stop_if_idle()
        self._say_ready()
        while True:
            self._service.take_step(await self._engine.wait_step())
            self._stop_if_idle()

    async def _listen(self) -> None:
        while True:
            parts = await self._sockets.receive()
            message = _decode(parts)
            if message is None:
                self.bad_messages += 1
                log.warning("a control message did not decode", parts=len(parts), size=sum(map(len, parts)))
                continue
            self._heard_at = asyncio.get_running_loop().time()
            self._take(message)
            self._sockets.flush()

    async def _watch_topics(self) -> None:
        while True:
            await self._sockets.wait_subscription()
            self._say_ready()

    async def _watch_connection(self) -> None:
        while True:
            await self._sockets.wait_disconnect()
            self._lose_daemon("the connection broke")

    async def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause_s = self._settings.beat_s if self._beat() else min(REDIAL_S, self._settings.beat_s)
            before = loop.time()
            await asyncio.sleep(pause_s)
            # Our own standstill is not the daemon's silence: what it sent meanwhile has not been read yet.
            self._heard_at += max(0.0, loop.time() - before - pause_s)
            self._mind_silence(loop.time() - self._heard_at)

    # --- what the daemon says ---

    def _take(self, message: ToWorker) -> None:
        match message:
            case Pulse():
                pass
            case Batch(submits=submits):
                self._service.take_batch(submits)
            case Abort(run_ids=run_ids):
                self._service.abort(run_ids)
            case Replay(first_seq=first_seq, last_seq=last_seq):
                self._service.replay(first_seq, last_seq)
            case GetSnapshot():
                self._service.say_snapshot()
            case Welcome(daemon_epoch=daemon_epoch, model=model):
                self._take_welcome(daemon_epoch, model)
            case Introduce():
                self._lose_daemon("it does not know us")
                self._beat()
            case Drain():
                self._service.is_draining = True
                self._beat()
            case Stop():
                self.stop("stopped by the daemon")
            case Refused(reason=reason):
                log.error("refused by the daemon", reason=reason)
                self._end(Ending(1, f"refused by the daemon: {reason}"))

    def _take_welcome(self, daemon_epoch: bytes, model: str) -> None:
        if daemon_epoch == self._daemon:
            return  # the answer to a second Hello
        self._lose_daemon("another one welcomes us")
        self._daemon = daemon_epoch
        self._service.set_namespace(model)
        log.info("welcomed", daemon_epoch=daemon_epoch.hex())
        self._say_ready()

    # --- what we say ---

    def _beat(self) -> bool:
        """Say that we live. False: there is no connection, or it takes nothing more; a beat is not worth keeping."""
        if self._daemon is None:
            return self._sockets.send(encode(self._hello))
        load = self._service.load()
        steps, left_out = self._service.take_steps()
        return self._sockets.send(
            encode(
                Beat(
                    self._epoch,
                    self._phase(),
                    last_seq=self._service.next_seq - 1,
                    queued=load.queued,
                    running=load.running,
                    kv_used_tokens=load.kv_used_tokens,
                    detail=self._detail,
                    steps=steps,
                    steps_left_out=left_out,
                )
            )
        )

    def _phase(self) -> WorkerPhase:
        if self._service.capacity is None:
            return "loading"
        return "draining" if self._service.is_draining else "ready"

    def _say_ready(self) -> None:
        """Say what the cache holds and Ready, as soon as all of it is true: welcomed, subscribed to, loaded."""
        capacity = self._service.capacity
        if self._service.is_open or self._daemon is None or capacity is None:
            return
        if not self._sockets.is_subscribed(self._daemon):
            return
        self._service.open()
        self._say(Ready(self._epoch, capacity, self._service.next_seq))
        self._beat()

    def _say(self, message: FromWorker) -> None:
        """Send in order, later if not now. A daemon that takes so little that there is no room for more is lost: that
        ends its runs on both sides. What is meant for one that is lost already goes nowhere."""
        if self._daemon is not None and not self._sockets.send_surely(encode(message)):
            self._lose_daemon("too many messages wait for it")

    def _publish(self, frame: bytes) -> None:
        if self._daemon is not None:
            self._sockets.publish(self._daemon, frame)

    def _report(self, detail: str) -> None:
        log.info("loading", detail=detail)
        self._detail = detail

    # --- parting ---

    def _mind_silence(self, silent_s: float) -> None:
        if silent_s > self._settings.alone_exit_s:
            log.warning("no daemon", silent_s=round(silent_s, 1))
            self.stop(f"no daemon for {silent_s:.0f} s")
        elif silent_s > self._settings.alone_abort_s and self._service.runs:
            self._lose_daemon(f"silent for {silent_s:.1f} s")

    def _lose_daemon(self, reason: str) -> None:
        if self._daemon is None:
            return
        log.warning("daemon lost", reason=reason, daemon_epoch=self._daemon.hex())
        self._daemon = None
        self._sockets.forget_unsent()
        self._service.drop_all()
        self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if self._stops_when_idle and not self._service.runs:
            self.stop("drained")

    def _end(self, ending: Ending) -> None:
        if not self._ended.done():
            self._ended.set_result(ending)

    async def _part(self, reason: str) -> None:
        self._sockets.send(encode(Leaving(self._epoch, reason)))
        try:
            async with asyncio.timeout(STOP_S):
                await self._engine.stop()
        except TimeoutError:
            log.error("the engine did not stop", after_s=STOP_S)
        finally:
            self._sockets.close()


def _decode(parts: list[bytes]) -> ToWorker | None:
    if len(parts) != 1:
        return None
    try:
        message: ToWorker = TO_WORKER.decode(parts[0])
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
