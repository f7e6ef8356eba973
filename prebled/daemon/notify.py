"""Tells systemd how the daemon is: ready, loading, stopping, alive. The protocol of sd_notify(3), without libsystemd.

Without `$NOTIFY_SOCKET` everything here does nothing. Nothing here raises or waits: a service manager that does not
listen is no reason to fail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger()

NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Not for workers' environments: they are addressed to the daemon."""

STATUS_BYTES = 1024

EXTEND_EVERY_S = 5.0
"""Where no watchdog sets the pace."""

EXTEND_BY_S = 30.0
"""How much longer, beyond the next turn, a start may take while workers load: a daemon that hangs is still found."""


class Notifier:
    """`env` is the environment of process `pid`, which is to be this one."""

    def __init__(self, env: Mapping[str, str], pid: int | None = None) -> None:
        self._address = _socket_address(env.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(env, os.getpid() if pid is None else pid) if self._address else None
        self._socket: socket.socket | None = None
        self._status = ""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ready(self, status: str) -> None:
        """The service is up; ends a reload as well."""
        self._status = _one_line(status)
        self._send("READY=1", f"STATUS={self._status}")

    def status(self, text: str) -> None:
        """One line for people; the same as last time is not sent again."""
        line = _one_line(text)
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self, status: str) -> None:
        """The service goes away."""
        self._status = _one_line(status)
        self._send("STOPPING=1", f"STATUS={self._status}")

    def reloading(self) -> None:
        """A reload begins (Type=notify-reload wants the time with it); `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, by_s: float) -> None:
        """Starting or stopping may take until so long from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(by_s * 1e6)}")

    async def run(self, is_slow: Callable[[], bool]) -> None:
        """Feed the watchdog from the event loop itself, at half its time, and ask for more time while `is_slow()`: the
        daemon starts, or stops, and is getting on with it. Until cancelled; returns at once where nobody listens."""
        if self._socket is None:
            return
        step_s = self.watchdog_s / 2 if self.watchdog_s else EXTEND_EVERY_S
        while True:
            if self.watchdog_s:
                self.watchdog()
            if is_slow():
                self.extend_timeout(step_s + EXTEND_BY_S)
            await asyncio.sleep(step_s)

    def close(self) -> None:
        """Say nothing more. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager does not listen", error=str(error))


def _socket_address(text: str) -> str:
    """A path, or an abstract name; empty where there is none or of a kind that is not supported (vsock)."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(env: Mapping[str, str], pid: int) -> float | None:
    """What the watchdog's time is, if it watches this process (sd_watchdog_enabled(3))."""
    microseconds, watched = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (watched and watched != str(pid)):
        return None
    return int(microseconds) / 1e6


def _one_line(text: str) -> str:
    return " ".join(text.split()).encode()[:STATUS_BYTES].decode(errors="ignore")
