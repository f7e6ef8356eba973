"""A worker's side of the fabric that does what a test tells it to, over real sockets; and a listener that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from prebled.addresses import fabric_endpoints
from prebled.core.types import Epoch, RunId, WorkerId
from prebled.messages import (
    PROTOCOL_VERSION,
    TO_WORKER,
    Batch,
    Beat,
    Capacity,
    Chunk,
    Done,
    Failed,
    Frame,
    FromWorker,
    Hello,
    KvChange,
    KvChanged,
    KvSnapshot,
    KvStored,
    Pulse,
    Ready,
    Replay,
    Replayed,
    Tokens,
    ToWorker,
    Welcome,
    encode,
)

PATIENCE_S = 5.0

M = TypeVar("M")


def capacity(block_tokens: int = 64) -> Capacity:
    return Capacity("m", "script", "none", block_tokens, 1000, 500, 600, 100, 8)


class ScriptedWorker:
    """Connects on construction and then does nothing by itself."""

    def __init__(self, address: str, worker_id: str = "w0", epoch: int = 1, identity: bytes | None = None) -> None:
        self.worker_id = WorkerId(worker_id)
        self.epoch = Epoch(epoch)
        self.seq = 0
        self.ring: dict[int, Frame] = {}
        self.held: tuple[KvStored, ...] = ()  # what its snapshots tell
        self.topic = b""
        self._subscriptions: set[bytes] = set()
        self._context = zmq.asyncio.Context()
        self._control = self._context.socket(zmq.DEALER)
        self._control.setsockopt(zmq.LINGER, 0)
        self._control.setsockopt(zmq.IDENTITY, identity or f"{worker_id}.{epoch}".encode())
        self._events = self._context.socket(zmq.XPUB)
        self._events.setsockopt(zmq.LINGER, 0)
        control, events = fabric_endpoints(address)
        for socket in (self._control, self._events):
            socket.setsockopt(zmq.IPV6, int("[" in control))
        self._control.connect(control)
        self._events.connect(events)

    def close(self) -> None:
        self._context.destroy(linger=0)

    async def say(self, message: FromWorker) -> None:
        await self.say_raw(encode(message))

    async def say_raw(self, *parts: bytes) -> None:
        await self._control.send_multipart(parts)

    async def hello(self, protocol: int = PROTOCOL_VERSION, pid: int = 100) -> None:
        await self.say(Hello(protocol, self.worker_id, self.epoch, pid, "script"))

    async def hear(
        self, kind: type[M], *, skip: tuple[type[ToWorker], ...] = (Pulse,), patience_s: float = PATIENCE_S
    ) -> M:
        """The next message but for those to skip; it must be of this kind."""
        async with asyncio.timeout(patience_s):
            while True:
                message = TO_WORKER.decode(await self._control.recv())
                if isinstance(message, kind):
                    return message
                assert isinstance(message, skip), message

    async def hear_runs(self, count: int) -> list[RunId]:
        """The runs of the next batches, until there are this many."""
        runs: list[RunId] = []
        while len(runs) < count:
            runs += [submit.run_id for submit in (await self.hear(Batch)).submits]
        return runs

    async def join(self) -> None:
        """Greet, be welcomed, see the subscription, tell the cache, be ready."""
        await self.hello()
        self.topic = (await self.hear(Welcome)).daemon_epoch
        async with asyncio.timeout(PATIENCE_S):
            while self.topic not in self._subscriptions:  # each comes once for as long as the connection lasts
                message = await self._events.recv()
                self._subscriptions.add(message[1:])
        await self.snapshot()
        await self.say(Ready(self.epoch, capacity(), self.seq + 1))

    async def snapshot(self, last_seq: int | None = None) -> None:
        """All that is `held`, after all frames so far unless told otherwise."""
        await self.say(KvSnapshot(self.epoch, self.seq if last_seq is None else last_seq, self.held))

    async def beat(self, **fields: Any) -> None:
        await self.say(Beat(self.epoch, **{"phase": "ready", "last_seq": self.seq, **fields}))

    async def tokens(self, run_id: str, *tokens: int, drop: bool = False, first: bool = False) -> int:
        """One frame with these tokens; dropped ones are in the ring all the same."""
        chunk = Chunk(RunId(run_id), tokens, 0 if first else -1)
        return await self._publish(Tokens(self.epoch, self.seq + 1, (chunk,)), drop)

    async def kv(self, *changes: KvChange, drop: bool = False) -> int:
        """One frame with these changes."""
        return await self._publish(KvChanged(self.epoch, self.seq + 1, changes), drop)

    async def _publish(self, frame: Frame, drop: bool) -> int:
        self.seq = frame.seq
        self.ring[self.seq] = frame
        if not drop:
            await self.publish_raw(self.topic, encode(frame))
        return self.seq

    async def publish_raw(self, *parts: bytes) -> None:
        await self._events.send_multipart(parts)

    async def done(self, run_id: str, output_tokens: int = 1) -> None:
        await self.say(Done(self.epoch, RunId(run_id), self.seq, "stop", 1, 0, output_tokens))

    async def failed(self, run_id: str) -> None:
        await self.say(Failed(self.epoch, RunId(run_id), "engine_failed", "broken"))

    async def answer(self, ask: Replay) -> None:
        """From the ring; what is not in it any more is left out."""
        held = [seq for seq in range(ask.first_seq, ask.last_seq + 1) if seq in self.ring]
        first = held[0] if held else ask.last_seq + 1
        await self.say(Replayed(self.epoch, first, tuple(encode(self.ring[seq]) for seq in held)))


class Recorder:
    """Listens to a fabric and remembers all it is told, in order, as (what, worker, ...)."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.hook: Callable[[tuple[Any, ...]], None] = lambda told: None
        self._news = asyncio.Event()

    def worker_known(self, worker_id: WorkerId, epoch: Epoch, pid: int, engine: str) -> None:
        self._tell("known", worker_id, epoch, pid, engine)

    def worker_loading(self, worker_id: WorkerId, detail: str) -> None:
        self._tell("loading", worker_id, detail)

    def worker_ready(self, worker_id: WorkerId, epoch: Epoch, capacity: Capacity) -> None:
        self._tell("ready", worker_id, epoch, capacity)

    def worker_beat(self, worker_id: WorkerId, beat: Beat) -> None:
        self._tell("beat", worker_id, beat)

    def worker_lost(self, worker_id: WorkerId, reason: str) -> None:
        self._tell("lost", worker_id, reason)

    def kv_snapshot(self, worker_id: WorkerId, runs: Sequence[KvStored]) -> None:
        self._tell("kv_snapshot", worker_id, tuple(runs))

    def kv_changed(self, worker_id: WorkerId, changes: Sequence[KvChange]) -> None:
        self._tell("kv_changed", worker_id, tuple(changes))

    def run_chunk(self, worker_id: WorkerId, chunk: Chunk) -> None:
        self._tell("chunk", worker_id, chunk.run_id, chunk.tokens)

    def run_done(self, worker_id: WorkerId, done: Done) -> None:
        self._tell("done", worker_id, done.run_id)

    def run_failed(self, worker_id: WorkerId, failed: Failed) -> None:
        self._tell("failed", worker_id, failed.run_id)

    def run_lost(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        self._tell("run_lost", worker_id, tuple(run_ids))

    def _tell(self, *told: Any) -> None:
        self.told.append(told)
        self._news.set()
        self.hook(told)

    def all(self, *kinds: str) -> list[tuple[Any, ...]]:
        """What was told of these kinds."""
        return [told for told in self.told if told[0] in kinds]

    def tokens(self, run_id: str) -> list[int]:
        """All tokens of a run."""
        return [token for told in self.all("chunk") if told[2] == run_id for token in told[3]]

    async def wait(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        """The `count`-th of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.all(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.all(kind)[count - 1]
