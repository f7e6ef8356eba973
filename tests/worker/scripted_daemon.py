"""A daemon's side of the fabric that does what a test tells it to, over real sockets; and an engine that does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import zmq
import zmq.asyncio

from prebled.addresses import fabric_endpoints
from prebled.core.types import RunId
from prebled.errors import EngineFailed
from prebled.messages import (
    FRAME,
    FROM_WORKER,
    Beat,
    Capacity,
    Done,
    Failed,
    Frame,
    Hello,
    KvSnapshot,
    KvStored,
    Ready,
    Submit,
    ToWorker,
    Welcome,
    encode,
)
from prebled.worker.engine import EngineLoad, EngineStep

PATIENCE_S = 5.0

M = TypeVar("M")


class ScriptedDaemon:
    """Binds on construction (the events socket only if `subscribe`) and then does nothing by itself but to keep the
    frames that come. (A ZeroMQ socket that nobody reads does not even subscribe.)"""

    def __init__(self, address: str, epoch: bytes = b"daemon-1", *, subscribe: bool = True) -> None:
        self.epoch = epoch
        self.identity = b""
        self.snapshots: list[KvSnapshot] = []  # heard so far; they are no message of their own below
        self._endpoints = fabric_endpoints(address)
        self._context = zmq.asyncio.Context()
        self._control = self._context.socket(zmq.ROUTER)
        self._control.setsockopt(zmq.LINGER, 0)
        self._control.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._control.bind(self._endpoints[0])
        self._events = self._context.socket(zmq.SUB)
        self._events.setsockopt(zmq.LINGER, 0)
        self._frames: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._reader: asyncio.Future[None] | None = None
        if subscribe:
            self.subscribe(epoch)
            self.bind_events()

    def bind_events(self) -> None:
        self._events.bind(self._endpoints[1])
        self._reader = asyncio.ensure_future(self._read_events())

    async def _read_events(self) -> None:
        while True:
            self._frames.put_nowait(await self._events.recv_multipart())

    def subscribe(self, topic: bytes) -> None:
        self._events.setsockopt(zmq.SUBSCRIBE, topic)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._context.destroy(linger=0)

    async def say(self, message: ToWorker) -> None:
        await self.say_raw(encode(message))

    async def say_raw(self, *parts: bytes) -> None:
        await self._control.send_multipart([self.identity, *parts])

    async def next_message(self) -> object:
        while True:
            self.identity, raw = await self._control.recv_multipart()
            message = FROM_WORKER.decode(raw)
            if not isinstance(message, KvSnapshot):
                return message
            self.snapshots.append(message)

    async def hear_snapshots(self, count: int) -> list[KvSnapshot]:
        """All snapshots so far, when there are so many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.snapshots) < count:
                await self.next_message()
        return self.snapshots

    async def hear(self, kind: type[M], *, skip: tuple[type, ...] = (Beat,)) -> M:
        """The next message but for those to skip; it must be of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await self.next_message()
                if isinstance(message, kind):
                    return message
                assert isinstance(message, skip), f"{kind} was wanted: {message}"

    async def hear_beat(self, condition: Callable[[Beat], bool], *, skip: tuple[type, ...] = (Done, Failed)) -> Beat:
        """The next beat that fulfils the condition."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                beat = await self.hear(Beat, skip=skip)
                if condition(beat):
                    return beat

    async def greet(self, model: str = "m") -> Ready:
        """Hello, Welcome, a snapshot, Ready."""
        await self.hear(Hello)
        await self.say(Welcome(self.epoch, model))
        return await self.hear(Ready, skip=(Beat, Hello))

    async def next_frame(self) -> tuple[bytes, Frame]:
        """The next frame, as it is and decoded."""
        async with asyncio.timeout(PATIENCE_S):
            topic, raw = await self._frames.get()
        assert topic == self.epoch
        return raw, FRAME.decode(raw)

    async def hear_ends(self, count: int) -> dict[str, Done | Failed]:
        """So many ends of runs, by run."""
        ends = [await self.hear(Done | Failed) for _ in range(count)]  # type: ignore[arg-type]
        assert len({end.run_id for end in ends}) == count, "a run ended twice"
        return {end.run_id: end for end in ends}


class ScriptedEngine:
    """Loads when `loaded` is set, and brings the steps (or raises the errors) that a test puts into `steps`."""

    def __init__(self) -> None:
        self.loaded = asyncio.Event()
        self.report: Callable[[str], None] = lambda text: None
        self.steps: asyncio.Queue[EngineStep | Exception] = asyncio.Queue()
        self.submitted: list[Submit] = []
        self.aborted: list[RunId] = []
        self.namespaces: list[str] = []
        self.runs: tuple[KvStored, ...] = ()  # what the cache holds
        self.stops = 0
        self.start_error: Exception | None = None

    async def start(self, report: Callable[[str], None]) -> Capacity:
        self.report = report
        await self.loaded.wait()
        if self.start_error is not None:
            raise self.start_error
        return Capacity("m", "script", "none", 16, 1000, 500, 600, 100, 8)

    def submit_nowait(self, submits: Sequence[Submit]) -> None:
        self.submitted += submits

    def abort_nowait(self, run_ids: Sequence[RunId]) -> None:
        self.aborted += run_ids

    async def wait_step(self) -> EngineStep:
        step = await self.steps.get()
        if isinstance(step, Exception):
            raise step
        return step

    def load(self) -> EngineLoad:
        return EngineLoad(0, len(self.submitted), 0)

    def set_namespace(self, model: str) -> None:
        self.namespaces.append(model)

    def held(self) -> tuple[KvStored, ...]:
        return self.runs

    async def stop(self) -> None:
        self.stops += 1
        self.steps.put_nowait(EngineFailed("stopped"))
