"""The native front door: the protocol of `prebled.wire` on Unix and TCP sockets.

It knows listening and connections; what a client may say is `socket_connection`'s business.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from prebled.addresses import TcpAddress, UnixAddress, parse_address
from prebled.daemon.gateway import Gateway
from prebled.daemon.listening import bind_unix, cannot_listen, unlink_unix
from prebled.daemon.socket_connection import Connection
from prebled.settings import LimitSettings

MAX_CALLS = 4096
"""Most requests in flight on one connection; past it `Saturated`. Room for a proxy that puts all its clients on one."""

GRACE_S = 2.0
BACKLOG = 1024
READ_BYTES = 256 * 1024
"""What is read ahead of a connection's turn."""


class SocketServer:
    """Serves native clients at `addresses` while it is entered; a bad address or one in use is a SettingsError.

    Leaving stops listening, gives answers in flight `grace_s` to be delivered, tells the clients that the daemon stops,
    and waits until all their streams are closed. To drain, leave when the gateway is idle.
    """

    def __init__(
        self,
        gateway: Gateway,
        addresses: Sequence[str],
        limits: LimitSettings,
        *,
        max_calls: int = MAX_CALLS,
        grace_s: float = GRACE_S,
    ) -> None:
        self._gateway = gateway
        self._wanted = [parse_address(address) for address in addresses]
        self._limits = limits
        self._max_calls = max_calls
        self._grace_s = grace_s
        self._group = asyncio.TaskGroup()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._servers: list[asyncio.Server] = []
        self._files: list[tuple[str, int]] = []
        self._addresses: list[str] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens; port 0 has become the real port."""
        return tuple(self._addresses)

    @property
    def open_connections(self) -> int:
        """Connections at the moment."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        try:
            for address in self._wanted:
                await (self._listen_unix(address) if isinstance(address, UnixAddress) else self._listen_tcp(address))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_accepting()
        calls = [call for connection in self._connections.values() for call in connection.calls()]
        if calls:
            await asyncio.wait(calls, timeout=self._grace_s)
        for task in self._connections:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def stop_accepting(self) -> None:
        """Listen no more; open connections go on."""
        for server in self._servers:
            server.close()
        for path, inode in self._files:
            unlink_unix(path, inode)
        self._servers.clear()
        self._files.clear()

    async def _listen_unix(self, address: UnixAddress) -> None:
        listener, inode = bind_unix(address)
        self._files.append((address.path, inode))
        self._servers.append(
            await asyncio.start_unix_server(self._accept, sock=listener, backlog=BACKLOG, limit=READ_BYTES)
        )
        self._addresses.append(str(address))

    async def _listen_tcp(self, address: TcpAddress) -> None:
        try:
            server = await asyncio.start_server(
                self._accept, address.host, address.port, backlog=BACKLOG, limit=READ_BYTES
            )
        except OSError as error:
            raise cannot_listen(address, error) from error
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        self._addresses.append(str(TcpAddress(address.host, port)))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected = writer.get_extra_info("socket")
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # finds hosts that vanished
        connection = Connection(self._gateway, self._limits, self._max_calls, reader, writer)
        is_room = len(self._connections) < self._limits.max_connections
        task = self._group.create_task(connection.run() if is_room else connection.refuse())
        self._connections[task] = connection
        task.add_done_callback(lambda done: self._leave(done, writer))

    def _leave(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        self._connections.pop(task, None)
        writer.close()  # for a task that was cancelled before it began
