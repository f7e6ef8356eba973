"""One HTTP request and its response, over ASGI: the body within its bound, the answer's headers, the client's leaving.

The rule: every response carries `x-request-id`, and a response is begun once. Not known here: what is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import Receive, Scope, Send

from prebled.daemon.inputs import request_id_or_new
from prebled.daemon.openai_errors import envelope, retry_headers
from prebled.errors import PayloadTooLarge, PrebledError, RequestError

Headers = Iterable[tuple[bytes, bytes]]

BODY_PAUSE_S = 30.0
"""A body that pauses for longer is given up."""

DRAIN_S = 5.0
"""How long the rest of a body that is too large is read and thrown away, so that its sender gets to read the answer."""

_JSON = b"application/json"


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Exchange:
    """`retry_after_s`: what overload answers say where the error itself does not. `begun` is told the status of the
    answer before any of it is sent."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, retry_after_s: float, begun: Callable[[int], None]
    ) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        headers = dict(self._headers)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.given_id = headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = request_id_or_new(self.given_id)
        self.is_started = False
        self.is_sending = False
        self._extensions: dict[str, Any] = scope.get("extensions") or {}
        self._content_length = headers.get(b"content-length", b"")
        self._receive = receive
        self._send = send
        self._retry_after_s = retry_after_s
        self._begun = begun

    @property
    def accept(self) -> str:
        """What the client would like to get."""
        return ",".join([value.decode("latin-1") for name, value in self._headers if name == b"accept"])

    @property
    def is_crowded(self) -> bool:
        """Whether the connection is one more than the server wants to have."""
        return bool(self._extensions.get("prebled.crowded", False))

    # --- the request ---

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. Raises PayloadTooLarge, ClientGone, and RequestError if it stops halfway."""
        if self._content_length.isdigit() and int(self._content_length) > max_bytes:
            raise _too_large(max_bytes)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            part, more = await self._read_part(size)
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
        return b"".join(parts)

    async def wait_gone(self) -> None:
        """Wait until the client has closed the connection; only once the body was read. Raises ClientGone."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone

    def abort(self) -> None:
        """Cut the connection off, with whatever has not been sent: for a client that does not read."""
        transport = self._extensions.get("prebled.transport")
        if transport is not None:
            transport.abort()

    async def _read_part(self, size: int) -> tuple[bytes, bool]:
        try:
            async with asyncio.timeout(BODY_PAUSE_S):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(f"the body stopped after {size} bytes") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    # --- the response ---

    async def reply(self, status: int, body: bytes, headers: Headers = (), *, content_type: bytes = _JSON) -> None:
        """Answer with `body` as it is."""
        length = (b"content-length", b"%d" % len(body))
        await self._begin(status, [(b"content-type", content_type), length, *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, error: PrebledError, headers: Headers = ()) -> None:
        """Answer with an error; nothing if an answer has begun."""
        if self.is_started:
            return
        body = envelope(error)
        extra = [*headers, *retry_headers(error, self._retry_after_s)]
        if not isinstance(error, PayloadTooLarge):
            await self.reply(error.status, body, extra)
            return
        # The connection must close, as the rest of the body would come; but closing it with unread data in it would
        # take the answer from the client. So the answer goes out whole, and the end of the response comes later.
        length = (b"content-length", b"%d" % len(body))
        await self._begin(error.status, [(b"content-type", _JSON), length, (b"connection", b"close"), *extra])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        await self._drain()
        await self._send({"type": "http.response.body", "body": b""})

    async def begin_events(self) -> None:
        """Begin an answer of server-sent events; their bytes go through `send_events`."""
        await self._begin(
            200,
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # or proxies collect the events
            ],
        )

    async def send_events(self, events: bytes, *, is_last: bool = False) -> None:
        """Waits while the client does not read; `is_sending` is true meanwhile."""
        self.is_sending = True
        await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})
        self.is_sending = False

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.is_started = True
        self._begun(status)
        headers.append((b"x-request-id", self.request_id.encode()))
        if self.is_crowded:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _drain(self) -> None:
        end = time.monotonic() + DRAIN_S
        try:
            while (left := end - time.monotonic()) > 0:
                async with asyncio.timeout(left):
                    message = await self._receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
        except TimeoutError:
            return


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than the {max_bytes} bytes that are taken")
