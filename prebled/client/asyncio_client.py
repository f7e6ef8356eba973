"""The asyncio client. One connection carries any number of requests; it is made at the first and again after a loss.

No task runs behind the caller's back: what arrives is booked from the transport's callbacks (`Session`), and waiters
are woken. A client belongs to the event loop it was first used on.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self, Unpack, cast

from prebled.addresses import Address, UnixAddress, parse_address
from prebled.client.requests import Messages, Options, Prompt, chat_request, prompt_request
from prebled.client.session import (
    UNREAD_TOKENS,
    Answer,
    CallView,
    Question,
    Reply,
    Session,
    TokenChunk,
    cannot_connect,
    client_closed,
    lost,
    no_answer,
)
from prebled.core.decisions import Explanation
from prebled.errors import PrebledError
from prebled.messages import DaemonStatus, Generate, GetDecision, GetStatus
from prebled.runtime_dir import find_socket
from prebled.wire import PREFACE


class _Connection(asyncio.Protocol):
    """One socket to the daemon: feeds the session, wakes its calls, and knows when the socket takes more."""

    def __init__(self, address: Address, unread_tokens: int) -> None:
        self.session = Session(unread_tokens)
        self.closed = asyncio.Event()
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not inherit from it
        self._transport.write(PREFACE)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.write(self.session.feed(data))
        except PrebledError as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.fail(lost(self._address, str(exc) if exc else "closed by the daemon"))
        self._writable.set()
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def wait_writable(self) -> None:
        """Wait until the socket takes more (or is gone, which the next call tells)."""
        await self._writable.wait()

    def write(self, data: bytes) -> None:
        """Send, at once if the socket lets us; nothing happens on a lost connection."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self, error: PrebledError) -> None:
        """End every call with `error` and drop the socket."""
        self.session.fail(error)
        if self._transport is not None:
            self._transport.abort()


class AsyncStream(CallView):
    """An answer in the making: an async iterator of `TokenChunk`.

    Iterating raises a `prebled.errors.PrebledError` where the request fails midway. Leaving an `async with` block, or
    `aclose`, cancels what still runs. A stream whose reader falls too far behind is ended with `SlowReader`.

    ```python
    async with await client.generate("Once upon a time", max_tokens=64) as stream:
        async for chunk in stream:
            print(chunk.text, end="")
    print(stream.usage)
    ```
    """

    def __init__(self, connection: _Connection, request: Generate) -> None:
        self._connection = connection
        self._changed = asyncio.Event()
        self._call, self._frame = connection.session.open(request, self._changed.set)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        while True:
            chunk = self._call.take_nowait()
            if chunk is not None:
                return chunk
            if self._call.has_ended:
                raise StopAsyncIteration
            await _wait_change(self._changed)

    async def collect(self) -> Answer:
        """Read to the end; what was not read yet, as one answer."""
        return self._call.answer([chunk async for chunk in self])

    async def text(self) -> str:
        """Read to the end; the text that was not read yet."""
        return (await self.collect()).text

    async def aclose(self) -> None:
        """Cancel the request if it still runs. Any number of times."""
        self._connection.write(self._connection.session.close(self._call))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _start(self) -> None:
        """Send the request and wait until it is accepted. Raises what the daemon answers instead."""
        try:
            await self._connection.wait_writable()
            self._connection.write(self._frame)
            self._frame = b""
            while not self._call.request_id and not self._call.has_ended:
                await _wait_change(self._changed)
            if self._call.error is not None and not self._call.chunks:
                raise self._call.error
        except BaseException:
            await self.aclose()
            raise


class AsyncClient:
    """A client of one daemon.

    `address`: `unix:PATH` or `tcp:HOST:PORT`, also with `//`; by default the socket of the user's own daemon, else of
    the system's. `timeout_s` bounds connecting and `status`. `unread_tokens`: output tokens that a stream may hold
    unread before it is ended, so that one slow reader costs memory of a known size and no other stream anything.

    Errors are those of `prebled.errors`: `ConnectionLost` where there is no daemon or it died (the next call connects
    anew), `Saturated` and `Unavailable` with `retry_after_s`, `RequestError` for what can never succeed.

    ```python
    async with AsyncClient("unix:///run/prebled/prebled.sock") as client:
        stream = await client.chat([{"role": "user", "content": "Hello!"}], max_tokens=100)
        print(await stream.text())
    ```
    """

    def __init__(self, address: str = "", *, timeout_s: float = 10.0, unread_tokens: int = UNREAD_TOKENS) -> None:
        self._address = parse_address(address or find_socket(os.environ))
        self._timeout_s = timeout_s
        self._unread_tokens = unread_tokens
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._is_closed = False

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """Continue a prompt, given as text or token ids; returns once the daemon has accepted it."""
        return await self._open(prompt_request(prompt, options))

    async def chat(self, messages: Messages, **options: Unpack[Options]) -> AsyncStream:
        """Answer a chat under the model's own template; returns once the daemon has accepted it."""
        return await self._open(chat_request(messages, options))

    async def status(self) -> DaemonStatus:
        """The daemon and its workers."""
        return await self._ask(GetStatus(call=0), DaemonStatus)

    async def explain(self, request_id: str) -> Explanation:
        """Why a request was placed where it was, or refused. Raises NotFound for one that the daemon does not know, or
        no longer remembers."""
        return await self._ask(GetDecision(0, request_id), Explanation)

    async def _ask(self, question: Question, kind: type[Reply]) -> Reply:
        connection = await self._connected()
        changed = asyncio.Event()
        call, frame = connection.session.open(question, changed.set)
        try:
            connection.write(frame)
            async with asyncio.timeout(self._timeout_s):
                await changed.wait()
        except TimeoutError:
            raise no_answer(self._address, self._timeout_s) from None
        finally:
            connection.session.close(call)
        if not isinstance(call.reply, kind):
            raise call.error or lost(self._address, f"no {kind.__name__} in its answer")
        return call.reply

    async def aclose(self) -> None:
        """Drop the connection: what still runs is cancelled, and its streams end with `ConnectionLost`."""
        self._is_closed = True
        async with self._connecting:  # a connection in the making is dropped as well
            if self._connection is not None:
                self._connection.close(client_closed(self._address))
                await self._connection.closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self, request: Generate) -> AsyncStream:
        stream = AsyncStream(await self._connected(), request)
        await stream._start()
        return stream

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._is_closed:
                raise client_closed(self._address)
            if self._connection is None or self._connection.session.is_lost:
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        connection = _Connection(self._address, self._unread_tokens)
        try:
            async with asyncio.timeout(self._timeout_s):
                if isinstance(self._address, UnixAddress):
                    await loop.create_unix_connection(lambda: connection, self._address.path)
                else:
                    await loop.create_connection(lambda: connection, self._address.host, self._address.port)
        except TimeoutError:
            raise no_answer(self._address, self._timeout_s) from None
        except OSError as error:
            raise cannot_connect(self._address, error) from error
        return connection


async def _wait_change(changed: asyncio.Event) -> None:
    changed.clear()
    await changed.wait()
