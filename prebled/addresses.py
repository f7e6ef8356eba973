"""Addresses as people write them: `unix:PATH`, `tcp:HOST:PORT` (both also with `//`), for HTTP also `HOST:PORT`.

Pure: nothing is resolved, opened or looked up. A bad address is a `SettingsError` that names it.
"""

from __future__ import annotations

import os
from typing import TypeAlias

import msgspec

from prebled.errors import SettingsError

MAX_PATH_BYTES = 107
"""Room for a path in Linux's `sockaddr_un` (108 with its closing zero)."""

EVENTS_SUFFIX = ".events"
"""What the token stream's socket adds to the path of the control socket."""


class UnixAddress(msgspec.Struct, frozen=True):
    """A Unix socket. A relative `path` starts at the working directory of whoever opens it."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(msgspec.Struct, frozen=True):
    """A TCP endpoint. `host` is a name or an address, IPv6 without brackets; `port` 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:{self.netloc}"

    @property
    def netloc(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets, as URLs want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address: TypeAlias = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """`unix:PATH` or `tcp:HOST:PORT`. Raises SettingsError."""
    scheme, colon, rest = text.partition(":")
    rest = rest.removeprefix("//")
    if colon and scheme == "unix":
        return _unix(text, rest)
    if colon and scheme == "tcp":
        return _tcp(text, rest)
    raise SettingsError(f"address {text!r}: neither unix:PATH nor tcp:HOST:PORT")


def parse_http_address(text: str) -> Address:
    """Like `parse_address`; a bare `HOST:PORT` is TCP. Raises SettingsError."""
    if text.partition(":")[0] in ("unix", "tcp"):
        return parse_address(text)
    return _tcp(text, text)


def fabric_endpoints(address: str) -> tuple[str, str]:
    """ZeroMQ endpoints (control, events) of a fabric address. Raises SettingsError.

    `unix:PATH` gives `ipc://PATH` and `ipc://PATH.events`; `tcp:HOST:PORT` gives ports PORT and PORT+1.
    An IPv6 host needs `ZMQ_IPV6` on the sockets.
    """
    parsed = parse_address(address)
    if isinstance(parsed, UnixAddress):
        _check_path(address, parsed.path + EVENTS_SUFFIX)
        # ZeroMQ gives `@name` and `*` meanings of their own; `./` keeps them names of files.
        path = parsed.path if parsed.path.startswith("/") else f"./{parsed.path}"
        return f"ipc://{path}", f"ipc://{path}{EVENTS_SUFFIX}"
    if not 1 <= parsed.port < 65535:
        raise SettingsError(f"address {address!r}: the fabric takes this port and the next, so 1 to 65534")
    return f"tcp://{parsed.netloc}", f"tcp://{TcpAddress(parsed.host, parsed.port + 1).netloc}"


def _unix(text: str, path: str) -> UnixAddress:
    _check_path(text, path)
    return UnixAddress(path)


def _check_path(text: str, path: str) -> None:
    if not path or path.endswith("/"):
        raise SettingsError(f"address {text!r}: names no socket file")
    if "\0" in path:
        raise SettingsError(f"address {text!r}: a path cannot hold a zero byte")
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise SettingsError(f"address {text!r}: the path {path!r} has {size} bytes, room is for {MAX_PATH_BYTES}")


def _tcp(text: str, netloc: str) -> TcpAddress:
    host, colon, port_text = netloc.rpartition(":")
    if not colon:
        raise SettingsError(f"address {text!r}: no port")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 65535):
        raise SettingsError(f"address {text!r}: port {port_text!r} is not a number from 0 to 65535")
    return TcpAddress(_host(text, host), int(port_text))


def _host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and "/" not in host:
        raise SettingsError(f"address {text!r}: an IPv6 host is written in brackets, like [::1]:8000")
    if not host or any(char in host for char in "/[]@* \t\n\0"):
        raise SettingsError(f"address {text!r}: host {host!r} is not a host name or address")
    return host
