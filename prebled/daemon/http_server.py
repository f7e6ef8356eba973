"""Serves an ASGI application on several addresses at once, from the event loop it is started on.

uvicorn's protocol parses and writes HTTP; its server class, which installs signal handlers and polls, is not used. The
sockets are bound here, so that an address in use is an error that names it. Not known here: what is served.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Sequence
from email.utils import formatdate

import structlog
from starlette.types import ASGIApp
from uvicorn.config import Config

from prebled.addresses import TcpAddress, UnixAddress, parse_http_address
from prebled.daemon.http_protocol import ConnectionsState, HttpProtocol
from prebled.daemon.listening import bind_unix, cannot_listen, unlink_unix
from prebled.settings import LimitSettings

log = structlog.get_logger()

KEEP_ALIVE_S = 75
BACKLOG = 1024
_LAST_WORDS_S = 5.0  # for handlers whose connections were cut off


class HttpServer:
    """`addresses`: `HOST:PORT`, `tcp:HOST:PORT` or `unix:PATH`; a bad one is a SettingsError here and now.

    Life: `start`, then `stop_accepting` when draining, then `wait_closed`.
    """

    def __init__(self, app: ASGIApp, addresses: Sequence[str], limits: LimitSettings) -> None:
        self._wanted = [parse_http_address(address) for address in addresses]
        self._config = Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._state = ConnectionsState(limits.max_connections)
        self._servers: list[asyncio.AbstractServer] = []
        self._files: list[tuple[str, int]] = []
        self._addresses: list[str] = []
        self._clock: asyncio.TimerHandle | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, `HOST:PORT` or `unix:PATH`; port 0 has become the real port."""
        return tuple(self._addresses)

    @property
    def open_connections(self) -> int:
        """Connections at the moment, idle ones included."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Listen. Raises SettingsError for an address that cannot be had; then none is listened on."""
        self._config.load()
        self._tell_time()
        try:
            for address in self._wanted:
                await (self._listen_unix(address) if isinstance(address, UnixAddress) else self._listen_tcp(address))
        except BaseException:
            self.stop_accepting()
            self._stop_clock()
            raise

    def stop_accepting(self) -> None:
        """Listen no more. Idle connections are closed; the others after their present answer."""
        for server in self._servers:
            server.close()
        for path, inode in self._files:
            unlink_unix(path, inode)
        self._servers.clear()
        self._files.clear()
        for connection in list(self._state.connections):
            connection.shutdown()

    async def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all answers are out; True if they were in time, otherwise the connections have been cut off."""
        self.stop_accepting()
        try:
            async with asyncio.timeout(timeout_s):
                await self._state.is_empty.wait()
            in_time = True
        except TimeoutError:
            in_time = False
            for connection in list(self._state.connections):
                connection.transport.abort()
        if self._state.tasks:
            _, stuck = await asyncio.wait(self._state.tasks, timeout=_LAST_WORDS_S)
            for task in stuck:
                task.cancel()
        self._stop_clock()
        return in_time

    def _protocol(self) -> HttpProtocol:
        return HttpProtocol(self._config, self._state, asyncio.get_running_loop())

    async def _listen_unix(self, address: UnixAddress) -> None:
        listener, inode = bind_unix(address)
        self._files.append((address.path, inode))
        await self._listen(listener, str(address))

    async def _listen_tcp(self, address: TcpAddress) -> None:
        """A name may stand for several addresses (`localhost`); all get the same port."""
        try:
            listeners = await _bind_all(address)
        except OSError as error:
            raise cannot_listen(address, error) from error
        for listener in listeners:
            host, port = listener.getsockname()[:2]
            await self._listen(listener, TcpAddress(host, port).netloc)
            if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
                log.warning("anyone who can reach this address can use it: there are no API keys", address=host)

    async def _listen(self, listener: socket.socket, name: str) -> None:
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
        try:
            self._servers.append(await create(self._protocol, sock=listener, backlog=BACKLOG))
        except OSError as error:
            listener.close()
            raise cannot_listen(parse_http_address(name), error) from error
        self._addresses.append(name)

    def _tell_time(self) -> None:
        """Keeps the `date` header, once a second for all answers."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tell_time)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


async def _bind_all(address: TcpAddress) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    port = address.port
    for family, host in dict.fromkeys((entry[0], str(entry[4][0])) for entry in found):
        try:
            listeners.append(_bind(family, host, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # that one: a name's IPv6 address on a machine without IPv6
                _close_all(listeners)
                raise
            absent = error
        else:
            port = listeners[0].getsockname()[1]
    if not listeners and absent is not None:
        raise absent
    return listeners


def _close_all(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _bind(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the name's IPv4 address has its own
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
