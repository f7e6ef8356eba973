"""What prebled needs of an HTTP connection beyond uvicorn's own: small bounds on what a client can make us hold.

- Tokens leave at once (TCP_NODELAY), and the kernel holds little for a client that does not read.
- A request's head is bounded in bytes and in time; an idle connection is bounded in time.
- A response that a client does not fetch ends with its connection.
- Connections beyond the limit are marked, so that the application can refuse them in its own words.

Through `scope["extensions"]` the application gets `prebled.transport` (to abort) and `prebled.crowded`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from prebled.daemon.inputs import request_id_or_new
from prebled.daemon.openai_errors import envelope
from prebled.errors import RequestError

HEAD_BYTES = 64 * 1024
HEAD_S = 30.0
CROWD = 64
"""Connections beyond the limit that are still told so; further ones are cut off."""

UNSENT_BYTES = 64 * 1024
"""What the kernel takes of a stream before the client's side has room for it. Left to itself it takes megabytes, and a
client that does not read would be noticed only after minutes of tokens."""

_TCP_NOTSENT_LOWAT = 25  # from linux/tcp.h; the socket module does not have it


class ConnectionsState(ServerState):
    """The server's connections and tasks; `is_empty` is set while there are no connections."""

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.is_empty = asyncio.Event()
        self.is_empty.set()


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    server_state: ConnectionsState

    def __init__(self, config: Config, server_state: ConnectionsState, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config=config, server_state=server_state, app_state={}, _loop=loop)
        self._head_bytes = 0
        self._is_in_head = False  # what begins and ends a head in one piece is not counted
        self._is_crowded = False
        self._unsent_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server_state.is_empty.clear()
        connection = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # finds hosts that vanished
        beyond = len(self.connections) - self.server_state.max_connections
        self._is_crowded = beyond > 0
        if beyond > CROWD:
            transport.abort()
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if not self.connections:
            self.server_state.is_empty.set()

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The request's head is larger than {HEAD_BYTES} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0
        self._start_head_timer()
        extensions: dict[str, Any] = {"prebled.transport": self.transport, "prebled.crowded": self._is_crowded}
        self.scope["extensions"] = extensions

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP; in OpenAI's shape like all other answers. In the middle of an answer it would only be
        taken for a part of it, so the connection ends without a word."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = envelope(RequestError(msg))
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id_or_new('')}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # and does so only once all is sent
            self._wait_idle()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for a while. What was answered may still be on its way to a slow client; if none of it
        has moved since the last look, the client does not read."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            super().timeout_keep_alive_handler()
        elif unsent == self._unsent_bytes:
            self.transport.abort()
        else:
            self._unsent_bytes = unsent
            self._wait_idle()

    def shutdown(self) -> None:
        """The server stops: leave after the present answer, at once if there is none."""
        super().shutdown()
        self._stop_head_timer()

    def _wait_idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
