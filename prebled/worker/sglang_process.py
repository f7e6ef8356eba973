"""SGLang's scheduler processes, as their worker sees them: started, watched, spoken to over ZeroMQ, killed.

The sockets live in a private folder that is removed once everybody is connected, so that a worker that is killed
while it serves leaves no files behind. What the frames mean is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from prebled.errors import EngineFailed
from prebled.worker.sglang_child import SchedulerSpec

_COMMAND = (sys.executable, "-m", "prebled.worker.sglang_child")
_PORTS = range(22000, 30000)  # below those the kernel gives out by itself: a child binds its port only seconds later
_QUEUED_FRAMES = 10_000  # frames for a scheduler that does not read; past that it is taken for dead

_CONNECT_POLL_S = 0.01


class SchedulerProcesses:
    """One scheduler per tensor-parallel rank. To be made and used in one event loop of the main thread: the children
    die with the thread that started them."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[str] = self._loop.create_future()
        self._receiving: asyncio.Future[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._pidfds: list[int] = []
        self._folder = tempfile.mkdtemp(prefix="prebled-")
        # Only the outputs are awaited. The others are used where they cannot block, without asyncio's machinery.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outputs = zmq.asyncio.Socket(self._context, zmq.PULL)
        self._outputs.rcvhwm = 0  # bounded by the runs in flight; a scheduler must never wait for us
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.sndhwm = _QUEUED_FRAMES
        self._loads = self._context.socket(zmq.PULL)
        self._loads.setsockopt(zmq.CONFLATE, 1)  # only the newest counts
        self._rpc = self._context.socket(zmq.DEALER)  # idle; without it the scheduler would try to connect for ever
        self._outputs.bind(self._address("outputs"))
        self._requests.bind(self._address("requests"))
        self._loads.bind(self._address("loads"))
        self._rpc.bind(self._address("rpc"))

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.pid for child in self._children)

    def start(self, ranks: int, device: str, server_args: dict[str, Any], environment: dict[str, str]) -> None:
        """Start the processes, with `environment` beside the worker's own. That they serve is for their frames to
        say."""
        _quit_listeners.add(self._on_quit)
        port = _free_port()
        for rank in range(ranks):
            spec = SchedulerSpec(
                rank=rank,
                parent_pid=os.getpid(),
                device=device,
                server_args=server_args,
                nccl_port=port,
                **{name: self._address(name) for name in ("outputs", "requests", "loads", "rpc")},
            )
            self._spawn(rank, msgspec.json.encode(spec).decode(), os.environ | environment)

    async def wait_connected(self) -> None:
        """Wait until rank 0 has connected to be sent frames: that it has sent one itself does not say so. Raises
        EngineFailed if a child is gone before."""
        while not self._requests.poll(0, zmq.POLLOUT):
            if self._failure.done():
                raise EngineFailed(self._failure.result())
            await asyncio.sleep(_CONNECT_POLL_S)

    def send(self, frame: bytes) -> None:
        """Send a frame to rank 0, after `wait_connected`; in order, without waiting."""
        try:
            self._requests.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._fail(f"the scheduler left {_QUEUED_FRAMES} messages unread")

    async def wait_frame(self) -> bytes:
        """The next frame of any child. Raises EngineFailed when all frames are read and a child is gone. May be
        cancelled without losing a frame."""
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self._outputs.recv())
        receiving = self._receiving
        await asyncio.wait((receiving, self._failure), return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done():
            raise EngineFailed(self._failure.result())
        self._receiving = None
        return receiving.result()

    def newest_load(self) -> bytes | None:
        """The newest load snapshot since the last call, if there was one."""
        try:
            return self._loads.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def remove_files(self) -> None:
        """Remove the sockets' folder: connections that are made stay made."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def stop(self) -> None:
        """Kill the processes, wait until they are gone and close the sockets. Safe to call twice."""
        self._fail("the engine was stopped")
        for child in self._children:
            child.kill()
        for child in self._children:
            await asyncio.to_thread(child.wait)
        _quit_listeners.discard(self._on_quit)  # not before: a failing rank may have sent its SIGQUIT just now
        for pidfd in self._pidfds:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()
        if self._receiving is not None:
            self._receiving.cancel()
        for one in (self._outputs, self._requests, self._loads, self._rpc):
            one.close(linger=0)
        self._context.term()
        self.remove_files()

    def _address(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    def _spawn(self, rank: int, argument: str, environment: dict[str, str]) -> None:
        child = subprocess.Popen(
            [*self._command, argument],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C for the worker is for the worker to handle
        )
        self._children.append(child)
        pidfd = os.pidfd_open(child.pid)
        self._pidfds.append(pidfd)
        self._loop.add_reader(pidfd, self._on_exit, rank, child, pidfd)

    def _on_exit(self, rank: int, child: subprocess.Popen[bytes], pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        self._fail(f"scheduler process {rank} (pid {child.pid}) ended with exit code {child.wait()}")

    def _on_quit(self) -> None:
        """SGLang's schedulers, and their watchdogs, send SIGQUIT to their parent when they fail or hang."""
        self._loop.call_soon_threadsafe(self._fail, "a scheduler process reported a failure; its log tells which")

    def _fail(self, reason: str) -> None:
        if not self._failure.done():
            self._failure.set_result(reason)


class _QuitListeners:
    """Who is told of SIGQUIT in this process; it does not end the process while somebody is."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._before: Any = None

    def add(self, listener: Callable[[], None]) -> None:
        if not self._listeners:
            self._before = signal.signal(signal.SIGQUIT, self._handle)
        self._listeners.append(listener)

    def discard(self, listener: Callable[[], None]) -> None:
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)
            if not self._listeners:
                signal.signal(signal.SIGQUIT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for listener in self._listeners:
            listener()


_quit_listeners = _QuitListeners()


def _free_port() -> int:
    """A port of this host for the ranks to meet at. Raises EngineFailed if none is free."""
    for port in random.sample(_PORTS, 64):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise EngineFailed(f"no free port between {_PORTS.start} and {_PORTS.stop}")
