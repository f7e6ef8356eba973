"""Scheduler processes that die, hang or refuse, played by `fake_scheduler`, which takes no time to start."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from prebled.errors import EngineFailed
from prebled.worker import sglang_engine
from prebled.worker.sglang_engine import SGLangEngine
from prebled.worker.sglang_process import SchedulerProcesses

FAKE = str(Path(__file__).with_name("fake_scheduler.py"))
Start = Callable[..., SchedulerProcesses]


def command(mode: str) -> list[str]:
    return [sys.executable, FAKE, mode]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Starts fakes of one mode; stops them afterwards."""
    started: list[SchedulerProcesses] = []

    def start(mode: str, ranks: int = 1) -> SchedulerProcesses:
        processes = SchedulerProcesses(command(mode))
        started.append(processes)
        processes.start(ranks, "cpu", {}, {})
        return processes

    yield start
    for processes in started:
        await processes.stop()


async def test_frames_of_a_dead_scheduler_are_read_before_its_death_is_told(start: Start) -> None:
    processes = start("count")
    assert [await processes.wait_frame() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(EngineFailed, match="exit code 0"):
        await processes.wait_frame()


async def test_one_dead_rank_fails_all(start: Start) -> None:
    processes = start("echo", ranks=2)
    assert [await processes.wait_frame() for _ in range(2)] == [b"ready", b"ready"]
    os.kill(processes.pids[1], signal.SIGKILL)
    with pytest.raises(EngineFailed, match=f"process 1 .pid {processes.pids[1]}. ended with exit code -9"):
        await processes.wait_frame()


async def test_a_cancelled_wait_loses_no_frame(start: Start) -> None:
    processes = start("echo")
    assert await processes.wait_frame() == b"ready"
    await processes.wait_connected()
    processes.send(b"first")
    assert await processes.wait_frame() == b"first"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(processes.wait_frame(), 0.05)
    processes.send(b"second")
    assert await processes.wait_frame() == b"second"


async def test_waiting_for_a_scheduler_that_dies_first_ends(start: Start) -> None:
    processes = start("count")  # never reads
    with pytest.raises(EngineFailed):
        await processes.wait_connected()


async def test_connections_outlive_their_files(start: Start) -> None:
    processes = start("echo")
    assert await processes.wait_frame() == b"ready"
    await processes.wait_connected()
    processes.send(b"before")
    assert await processes.wait_frame() == b"before"
    processes.remove_files()
    processes.send(b"after")
    assert await processes.wait_frame() == b"after"


async def test_stopping_ends_the_processes_and_the_wait(start: Start) -> None:
    processes = start("echo", ranks=2)
    assert [await processes.wait_frame() for _ in range(2)] == [b"ready", b"ready"]
    waiting = asyncio.ensure_future(processes.wait_frame())
    await asyncio.sleep(0)
    await processes.stop()
    with pytest.raises(EngineFailed, match="stopped"):
        await waiting
    for pid in processes.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("mode", "told"),
    [("refuse", "SGLang refused some/model: ValueError: no such thing"), ("exit", "did not load .*exit code 3")],
)
async def test_a_failed_start_tells_why(mode: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_engine, "SchedulerProcesses", functools.partial(SchedulerProcesses, command(mode)))
    with pytest.raises(EngineFailed, match=told):
        await SGLangEngine("some/model").start(lambda text: None)


QUIT = """
import asyncio, signal, sys
from prebled.errors import EngineFailed
from prebled.worker.sglang_process import SchedulerProcesses

async def main():
    processes = SchedulerProcesses([sys.executable, sys.argv[1], "quit"])
    processes.start(1, "cpu", {}, {})
    try:
        await asyncio.wait_for(processes.wait_frame(), 30)
    except EngineFailed as error:
        print(error)
    await processes.stop()

asyncio.run(main())
print(signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL)
"""


def test_sigquit_of_a_scheduler_fails_the_engine_and_not_the_worker() -> None:
    """In a process of its own: the signal would reach every engine of this one."""
    done = subprocess.run([sys.executable, "-c", QUIT, FAKE], capture_output=True, text=True, timeout=60, check=True)
    assert "reported a failure" in done.stdout
    assert done.stdout.endswith("True\n")


ORPHAN = """
import os, subprocess, sys, time
child = "import os, sys, time; from prebled.worker.sglang_child import die_with_parent; "
child += "die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], start_new_session=True)
time.sleep(60)
"""


def test_a_scheduler_dies_with_its_worker() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert int(worker.stdout.readline())
        worker.kill()
        killed = time.monotonic()
        assert worker.stdout.read() == b""  # the pipe closes when the last of both has ended
        assert time.monotonic() - killed < 5


def test_a_scheduler_whose_worker_is_gone_already_does_not_start() -> None:
    code = "from prebled.worker.sglang_child import die_with_parent; die_with_parent(1 << 22); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
