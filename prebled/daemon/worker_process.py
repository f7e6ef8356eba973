"""One worker's process: spawned by us, or found alive after a daemon's death. Signals and exit, free of pid races.

A worker is started in a session of its own and without any tie to our life, its output appended to a file: it goes on
when the daemon is killed. It knows nothing of workers but their processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prebled.daemon.runtime_dir import WorkerRecord


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, as in proc_pid_stat(5); None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold anything
    state, started = fields[0], int(fields[19])
    return None if state in {b"Z", b"X"} else started


class WorkerProcess:
    """A live process. `on_exit` is called once, on the loop; after that `reap`."""

    def __init__(self, pid: int, pidfd: int, started: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.started = started
        self.is_dead = False
        self._pidfd = pidfd
        self._child = child
        self._on_exit: Callable[[], None] = lambda: None

    @classmethod
    def spawn(cls, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> WorkerProcess:
        """Start one. Raises OSError if the command cannot be run."""
        output = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            child = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        finally:
            os.close(output)
        try:
            pidfd = os.pidfd_open(child.pid)  # finds it even if it has died already: nobody but us reaps it
        except OSError:
            child.kill()
            child.wait()
            raise
        return cls(child.pid, pidfd, process_start(child.pid) or 0, child)

    @classmethod
    def adopt(cls, record: WorkerRecord) -> WorkerProcess | None:
        """The process of a record, if it still lives."""
        try:
            pidfd = os.pidfd_open(record.pid)
        except OSError:
            return None
        if process_start(record.pid) != record.started:  # asked after the pidfd was had: it is of this very process
            os.close(pidfd)
            return None
        return cls(record.pid, pidfd, record.started, None)

    @property
    def is_adopted(self) -> bool:
        """Whether an earlier daemon started it; its exit code cannot be known then."""
        return self._child is None

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` when the process has died."""
        self._on_exit = on_exit
        asyncio.get_running_loop().add_reader(self._pidfd, self._exited)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker itself; nothing if it is dead."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """Kill it and all that it started: they are in its process group, which has its pid."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """The exit code of a dead process (negative: killed by that signal), None for an adopted one. What it left
        running is killed: children that hold the GPU would starve its successor."""
        self.kill_group()  # before the zombie that keeps its pid from being used again is gone
        code = self._child.wait() if self._child is not None else None
        self._close()
        return code

    def release(self) -> None:
        """Leave a live process to itself."""
        if self._child is not None:
            self._child.returncode = 0  # or Popen complains of a child left running, which is what is wanted here
        self._close()

    def _exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.is_dead = True
        self._on_exit()

    def _close(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
