"""What systemd is told, read from a real notification socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from prebled.daemon.notify import EXTEND_BY_S, STATUS_BYTES, Notifier


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)
        self.env = {"NOTIFY_SOCKET": address}

    def heard(self) -> list[str]:
        """The lines of the next datagram."""
        return self.socket.recv(65536).decode().split("\n")

    def heard_nothing(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Manager]:
    manager = Manager(str(short_dir / "notify") if request.param == "path" else f"@prebled-test-{uuid.uuid4()}")
    yield manager
    manager.socket.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.env)
    yield notifier
    notifier.close()


def test_a_life(manager: Manager, notifier: Notifier) -> None:
    notifier.status("loading\nweights")
    assert manager.heard() == ["STATUS=loading weights"]
    notifier.extend_timeout(1.5)
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.ready("2 workers serve")
    assert manager.heard() == ["READY=1", "STATUS=2 workers serve"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    notifier.stopping("draining")
    assert manager.heard() == ["STOPPING=1", "STATUS=draining"]


def test_a_reload_tells_its_time_in_the_same_datagram(manager: Manager, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, second = manager.heard()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_the_same_status_is_told_once(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("fine")
    notifier.status("fine")
    notifier.status("worse")
    notifier.status("worse")
    assert manager.heard() == ["READY=1", "STATUS=fine"]
    assert manager.heard() == ["STATUS=worse"]
    assert manager.heard_nothing()


def test_a_long_status_is_cut_between_characters(manager: Manager, notifier: Notifier) -> None:
    notifier.status("é" * STATUS_BYTES)
    (line,) = manager.heard()
    assert line == "STATUS=" + "é" * (STATUS_BYTES // 2)


async def test_the_watchdog_is_fed_at_half_its_time_and_a_slow_start_extended(manager: Manager) -> None:
    notifier = Notifier({**manager.env, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 0.1
    slow = [True, False]
    task = asyncio.ensure_future(notifier.run(lambda: slow.pop(0) if slow else False))
    started = time.monotonic()
    heard = [await asyncio.to_thread(manager.heard) for _ in range(4)]
    took = time.monotonic() - started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    notifier.close()
    assert heard == [
        ["WATCHDOG=1"],
        [f"EXTEND_TIMEOUT_USEC={round((0.05 + EXTEND_BY_S) * 1e6)}"],
        *[["WATCHDOG=1"]] * 2,
    ]
    assert took >= 0.09


async def test_a_stuck_loop_does_not_feed_the_watchdog(manager: Manager) -> None:
    notifier = Notifier({**manager.env, "WATCHDOG_USEC": "50000"})
    task = asyncio.ensure_future(notifier.run(lambda: False))
    await asyncio.sleep(0)
    assert manager.heard() == ["WATCHDOG=1"]
    time.sleep(0.2)  # noqa: ASYNC251 - the loop is to be stuck
    assert manager.heard_nothing()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    notifier.close()


@pytest.mark.parametrize(
    ("env", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "42"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_only_a_watchdog_for_this_process_counts(env: dict[str, str], watchdog_s: float | None) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere", **env}, pid=42)
    assert notifier.watchdog_s == watchdog_s
    notifier.close()


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
async def test_without_a_manager_nothing_happens(env: dict[str, str]) -> None:
    notifier = Notifier({**env, "WATCHDOG_USEC": "1000"})
    notifier.ready("fine")
    async with asyncio.timeout(5):
        await notifier.run(lambda: True)
    notifier.close()


def test_a_manager_that_is_gone_or_does_not_read_harms_nobody(manager: Manager, notifier: Notifier) -> None:
    for number in range(5000):
        notifier.status(f"{number}")
    manager.socket.close()
    notifier.status("still here")
    notifier.close()
    notifier.close()
