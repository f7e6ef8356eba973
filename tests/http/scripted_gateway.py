"""A gateway whose answers a test writes itself: real `RequestStream`s, real decoding, no scheduler and no workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from prebled.core.decisions import Explanation
from prebled.core.types import RequestId
from prebled.daemon.gateway import GenerateInput, ModelInfo
from prebled.daemon.http import create_app
from prebled.daemon.http_server import HttpServer
from prebled.daemon.inputs import check_input, request_id_or_new
from prebled.daemon.metrics_http import HttpMeter
from prebled.daemon.metrics_text import content_type, is_openmetrics, render
from prebled.daemon.streams import RequestStream
from prebled.daemon.text import TextAssembler
from prebled.errors import ModelNotFound, NotFound, PrebledError
from prebled.messages import DaemonStatus, Usage, WorkerStatus
from prebled.settings import LimitSettings

USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=0)

Script = Callable[[RequestStream], Awaitable[None]]


class LetterDecoder:
    """Token n is character n."""

    def push(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def finish(self) -> str:
        return ""


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def tokens_of(text: str) -> tuple[int, ...]:
    """The tokens that `LetterDecoder` turns into `text`."""
    return tuple(map(ord, text))


async def say_hello(stream: RequestStream) -> None:
    """The script unless a test brings its own."""
    for piece in ("Hel", "lo", "!"):
        stream.push(tokens_of(piece))
        await asyncio.sleep(0)
    stream.finish("stop", USAGE)


class ScriptedGateway:
    """Plays `script` for every request. `before` runs before a request is accepted and may raise or wait."""

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self.script: Script = say_hello
        self.before: Callable[[GenerateInput], Awaitable[None]] | None = None
        self.inputs: list[GenerateInput] = []
        self.streams: list[RequestStream] = []
        self.aborted: list[RequestId] = []
        self.abort_seen = asyncio.Event()
        self.cancelled_before = 0
        self.worker_state = "ready"
        self.draining = False
        self.meter = HttpMeter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def generate(self, request: GenerateInput) -> RequestStream:
        self.inputs.append(request)
        if request.model not in ("", "tiny"):
            raise ModelNotFound(f"the model {request.model!r} does not exist", param="model")
        check_input(request, 2048)
        if self.before is not None:
            try:
                await self.before(request)
            except asyncio.CancelledError:
                self.cancelled_before += 1
                self.abort_seen.set()
                raise
        request_id = RequestId(request_id_or_new(request.request_id))
        assembler = TextAssembler(LetterDecoder(), request.stop)
        stream = RequestStream(
            request_id,
            assembler,
            stream_tokens=self.limits.stream_tokens,
            on_close=lambda: self._abort(request_id),
        )
        self.streams.append(stream)
        task = asyncio.create_task(self._play(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def model(self) -> ModelInfo:
        return ModelInfo("tiny", 1_700_000_000, 4096)

    def status(self) -> DaemonStatus:
        ready = self.worker_state == "ready" and not self.draining
        worker = WorkerStatus("w0", 1, self.worker_state, "sim", "cpu", 0, 0, 0, 1000, detail="weights 40%")
        return DaemonStatus(ready, self.draining, "tiny", "e2", 1, "0", 1.0, 0, 0, (worker,))

    def explain(self, request_id: str) -> Explanation:
        raise NotFound(f"request {request_id!r}: unknown", param="request_id")

    def expose(self, accept: str) -> tuple[bytes, bytes]:
        chosen = content_type(accept)
        return chosen.encode(), render(self.meter.families(), openmetrics=is_openmetrics(chosen))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _play(self, stream: RequestStream) -> None:
        try:
            await self.script(stream)
        except PrebledError as error:
            stream.fail(error)

    def _abort(self, request_id: RequestId) -> None:
        self.aborted.append(request_id)
        self.abort_seen.set()


@asynccontextmanager
async def serving(
    *addresses: str, limits: LimitSettings | None = None, **changed: int
) -> AsyncIterator[tuple[HttpServer, ScriptedGateway]]:
    """A server with a scripted gateway behind it; by default on a free port of 127.0.0.1."""
    limits = msgspec.structs.replace(limits or LimitSettings(), **changed)
    gateway = ScriptedGateway(limits)
    app = create_app(gateway, limits, gateway.expose, gateway.meter)
    server = HttpServer(app, addresses or ("127.0.0.1:0",), limits)
    await server.start()
    try:
        yield server, gateway
    finally:
        await gateway.close()
        await server.wait_closed(0.5)
