"""A gateway that answers as the prompt says, for tests of the native socket and its clients.

`count:N` gives N tokens; `hang` one token and then nothing; `fail` refuses; `break:N` fails after N tokens; `bug`
raises what is no PrebledError; `flood` gives large updates without end and fails like the runtime's streams once its
reader is too far behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from prebled.core.decisions import Candidate, Explanation, Placement
from prebled.core.types import RequestId, WorkerId
from prebled.daemon.gateway import GenerateInput, ModelInfo, StreamUpdate
from prebled.daemon.socket_server import SocketServer
from prebled.errors import NotFound, Saturated, SlowReader, WorkerFailed
from prebled.messages import DaemonStatus, Usage, WorkerStatus
from prebled.settings import LimitSettings

FLOOD_TEXT = "x" * 20_000
FLOOD_BOUND = 100


class ScriptedStream:
    """Implements `GenerationStream`."""

    def __init__(self, request_id: str, request: GenerateInput) -> None:
        self.request_id = RequestId(request_id)
        self.request = request
        self.closed_at: float | None = None
        self.fetched = 0
        self._updates: deque[StreamUpdate | Exception] = deque()
        self._changed = asyncio.Event()
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def push(self, item: StreamUpdate | Exception) -> None:
        if isinstance(item, Exception):
            self._failure.set_result(item)
            self._updates.clear()
        self._updates.append(item)
        self._changed.set()

    def flood(self) -> None:
        """Push updates as fast as the loop turns; fail once too many are unread."""
        if self.closed_at is not None or self._failure.done():
            return
        self.push(StreamUpdate(FLOOD_TEXT, (1,)))
        if len(self._updates) > FLOOD_BOUND:
            self.push(SlowReader(f"{len(self._updates)} updates behind"))
        asyncio.get_running_loop().call_later(0.0005, self.flood)

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> StreamUpdate:
        while not self._updates:
            self._changed.clear()
            await self._changed.wait()
        item = self._updates.popleft()
        if isinstance(item, Exception):
            raise item
        self.fetched += 1
        return item

    async def aclose(self) -> None:
        if self.closed_at is None:
            self.closed_at = time.monotonic()

    async def wait_failed(self) -> Exception:
        return await asyncio.shield(self._failure)


class ScriptedGateway:
    """Implements `Gateway`; remembers what it was asked."""

    def __init__(self) -> None:
        self.streams: list[ScriptedStream] = []

    async def generate(self, request: GenerateInput) -> ScriptedStream:
        prompt = request.prompt or ""
        if prompt == "fail":
            raise Saturated("1024 requests are waiting", retry_after_s=2.5)
        if prompt == "bug":
            raise ZeroDivisionError
        stream = ScriptedStream(f"req-{len(self.streams)}", request)
        self.streams.append(stream)
        verb, _, number = prompt.partition(":")
        if verb == "flood":
            stream.flood()
            return stream
        count = int(number or 1)
        for i in range(count):
            stream.push(StreamUpdate(f"{i} ", (i,)))
        if verb == "break":
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.02, stream.push, WorkerFailed("w0 is gone"))
        elif verb != "hang":
            stream.push(StreamUpdate("", (), "length", Usage(7, count, 3)))
        return stream

    def stream_of(self, prompt: str) -> ScriptedStream:
        return next(stream for stream in self.streams if stream.request.prompt == prompt)

    def model(self) -> ModelInfo:
        return ModelInfo("scripted", 0, 4096)

    def status(self) -> DaemonStatus:
        worker = WorkerStatus("w0", 41, "ready", "sim", "cpu", 0, 3, 2048, 8192)
        return DaemonStatus(True, False, "scripted", "e2", os.getpid(), "0.1.0", 12.5, 0, 3, (worker,))

    def explain(self, request_id: str) -> Explanation:
        if request_id not in {stream.request_id for stream in self.streams}:
            raise NotFound(f"request {request_id!r}: unknown", param="request_id")
        placement = Placement(
            WorkerId("w0"), "exploit", "e2", 640, 70, (Candidate(WorkerId("w0"), 640, 0, 0, 0.1, 0.1),)
        )
        return Explanation(RequestId(request_id), placement, None, 1, 576)


@contextlib.asynccontextmanager
async def serving(
    *addresses: str, max_calls: int = 4096, grace_s: float = 0.0, **limits: Any
) -> AsyncIterator[tuple[SocketServer, Any]]:
    """A socket server over a scripted gateway."""
    gateway = ScriptedGateway()
    settings = LimitSettings(**limits)
    async with SocketServer(gateway, addresses, settings, max_calls=max_calls, grace_s=grace_s) as server:
        yield server, gateway


async def wait_until(condition: Callable[[], object], timeout: float = 5.0) -> float:
    """Wait until `condition` holds; how long that took, in seconds."""
    started_at = time.monotonic()
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what is waited for is plain state of the code under test
            await asyncio.sleep(0.001)
    return time.monotonic() - started_at


def unix(folder: Path) -> str:
    """Address of a Unix socket in `folder`."""
    return f"unix:{folder}/prebled.sock"
