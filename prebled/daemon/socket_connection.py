"""One native client: reads its frames, runs its calls side by side, writes their answers.

Reading never waits for writing, so a cancel is always heard. A stream writes only while the socket takes more; while it
does not, updates merge in the gateway's stream, whose own bound ends it with `SlowReader`. A client that is stuck for
good is then dropped. Whatever ends the connection closes all its streams at once; a client that closes even only its
sending side counts as gone.
"""

from __future__ import annotations

import asyncio

import structlog

from prebled.daemon.gateway import Gateway, GenerationStream
from prebled.daemon.socket_frames import HEAD_BYTES, read_request, to_input, too_long, wire_error
from prebled.daemon.socket_writer import AnswerWriter
from prebled.errors import Draining, InternalError, PrebledError, ProtocolError, Saturated, SlowReader
from prebled.messages import (
    Cancel,
    DecisionReply,
    Error,
    Finished,
    Generate,
    GetDecision,
    GetStatus,
    Started,
    StatusReply,
    Text,
    ToDaemon,
)
from prebled.settings import LimitSettings
from prebled.wire import HEADER, MAGIC, PREFACE, pack

log = structlog.get_logger()

PREFACE_S = 10.0
"""How long a client may take to say its preface."""

_HTTP_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI ")
_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is prebled's native socket, not its HTTP port.\n"
)
_SKIP_BYTES = 64 * 1024


class Connection:
    """Serves one client until it goes or breaks the protocol."""

    def __init__(
        self,
        gateway: Gateway,
        limits: LimitSettings,
        max_calls: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._gateway = gateway
        self._limits = limits
        self._max_calls = max_calls
        self._reader = reader
        self._answers = AnswerWriter(reader, writer)
        self._calls: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve. Raises nothing but CancelledError, after which the client was told that the daemon stops."""
        try:
            async with asyncio.TaskGroup() as calls:
                last_words = await self._serve(calls)
                for task in self._calls.values():
                    task.cancel()
            await self._answers.say_goodbye(last_words)
        except asyncio.CancelledError:
            self._answers.write_nowait(wire_error(None, Draining("the daemon is stopping")))
            raise
        except Exception:
            log.exception("native connection failed")
        finally:
            await self._answers.close()

    async def refuse(self) -> None:
        """Tell the client that there are too many connections, and close."""
        most = self._limits.max_connections
        error = Saturated(f"{most} connections are open, at most so many", retry_after_s=self._limits.retry_after_s)
        try:
            await self._answers.say_goodbye(pack(wire_error(None, error)))
        finally:
            await self._answers.close()

    def calls(self) -> list[asyncio.Task[None]]:
        """The requests in flight; each task ends with its last frame written."""
        return list(self._calls.values())

    async def _serve(self, calls: asyncio.TaskGroup) -> bytes:
        """Handle frames until the client is gone or at fault; what to tell it last."""
        try:
            last_words = await self._read_preface()
            while not last_words:
                last_words = self._handle(await self._read_frame(), calls)
        except (asyncio.IncompleteReadError, OSError):
            return b""  # gone, maybe in the middle of a frame: nobody is left to tell
        return last_words

    async def _read_preface(self) -> bytes:
        try:
            async with asyncio.timeout(PREFACE_S):
                preface = await self._reader.readexactly(len(PREFACE))
        except TimeoutError:
            return pack(wire_error(None, ProtocolError(f"no preface within {PREFACE_S:g} s; wanted: {PREFACE!r}")))
        if preface == PREFACE:
            return b""
        if preface.startswith(_HTTP_METHODS):
            return _HTTP_ANSWER
        what = f"preface {preface!r}: not prebled's native protocol; wanted: {PREFACE!r}"
        if preface.startswith(MAGIC):
            what = f"protocol version {preface[-1]}: this daemon speaks version {PREFACE[-1]}"
        return pack(wire_error(None, ProtocolError(what)))

    async def _read_frame(self) -> ToDaemon | Error:
        """The next request, or the error to answer with. A frame beyond the bound is read past, not kept."""
        (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        if length <= self._limits.max_body_bytes:
            return read_request(await self._reader.readexactly(length))
        head = await self._reader.readexactly(min(length, HEAD_BYTES))
        error = too_long(head, length, self._limits.max_body_bytes)
        if error.call is not None:
            await self._skip(length - len(head))
        return error

    async def _skip(self, count: int) -> None:
        while count:
            data = await self._reader.read(min(count, _SKIP_BYTES))
            if not data:
                raise asyncio.IncompleteReadError(b"", count)
            count -= len(data)

    def _handle(self, request: ToDaemon | Error, calls: asyncio.TaskGroup) -> bytes:
        """Act on one frame; the last words to the client if it was the connection's end."""
        match request:
            case Generate():
                self._start_call(request, calls)
            case Cancel(call):
                if call in self._calls:
                    self._calls[call].cancel()
            case GetStatus(call):
                self._answers.write_nowait(StatusReply(call, self._gateway.status()))
            case GetDecision(call, request_id):
                self._answers.write_nowait(self._explain(call, request_id))
            case Error(None):
                return pack(request)
            case Error():
                self._answers.write_nowait(request)
        return b""

    def _explain(self, call: int, request_id: str) -> DecisionReply | Error:
        try:
            return DecisionReply(call, self._gateway.explain(request_id))
        except PrebledError as error:
            return wire_error(call, error)

    def _start_call(self, request: Generate, calls: asyncio.TaskGroup) -> None:
        call = request.call
        refusal = self._refusal(call)
        if refusal is not None:
            self._answers.write_nowait(wire_error(call, refusal))
            return
        task = calls.create_task(self._run_call(request))
        self._calls[call] = task
        task.add_done_callback(lambda done: self._forget(call, done))

    def _forget(self, call: int, task: asyncio.Task[None] | None) -> None:
        if self._calls.get(call) is task:  # the number may have been taken again
            del self._calls[call]

    def _refusal(self, call: int) -> PrebledError | None:
        if call in self._calls:
            what = f"call {call} is in flight on this connection: the new request is refused, the old one goes on"
            return ProtocolError(what, param="call")
        if len(self._calls) >= self._max_calls:
            what = f"{len(self._calls)} requests are in flight on this connection, at most so many"
            return Saturated(what, retry_after_s=self._limits.retry_after_s)
        return None

    async def _run_call(self, request: Generate) -> None:
        """One request from acceptance to its end; every outcome but a cancel is told to the client."""
        call = request.call
        try:
            stream = await self._gateway.generate(to_input(request))
            try:
                await self._relay(call, stream)
            finally:
                # From here on no cancel can find this task and cut the closing of the stream short.
                self._forget(call, asyncio.current_task())
                await stream.aclose()
        except PrebledError as error:
            self._answers.write_nowait(wire_error(call, error))
            if isinstance(error, SlowReader):
                await self._answers.drop_if_stuck()
        except Exception:
            if not self._answers.is_closing:
                log.exception("native request failed", call=call)
                blame = InternalError("internal error; the daemon's log has more")
                self._answers.write_nowait(wire_error(call, blame))

    async def _relay(self, call: int, stream: GenerationStream) -> None:
        self._answers.write_nowait(Started(call, stream.request_id))
        async for update in stream:
            await self._answers.wait_writable(stream)
            if update.text or update.tokens:
                self._answers.write_nowait(Text(call, update.text, update.tokens))
            if update.reason is not None:
                assert update.usage is not None
                self._answers.write_nowait(Finished(call, update.reason, update.usage))
                return
        raise InternalError("the answer broke off without an end")
