"""The daemon's runtime directory: its lock, and what is written down about workers so that a next daemon finds them.

Layout: `daemon.lock` (held by the one daemon, with its pid), `prebled.sock`, `fabric.sock`, `workers/ID.json` (a
process, see `WorkerRecord`), `workers/ID.log` (its output). Which directory it is, `prebled.runtime_dir` tells.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from prebled.core.types import WorkerId
from prebled.errors import SettingsError
from prebled.runtime_dir import FABRIC_NAME, SOCKET_NAME

_RECORD_BYTES = 1024 * 1024  # of a command line; more was not written by us


class WorkerRecord(msgspec.Struct, frozen=True):
    """A spawned worker. `started`: start of the process in clock ticks since boot, as /proc tells it; another process
    that got the same pid has another."""

    worker_id: WorkerId
    pid: int
    started: int
    argv: tuple[str, ...]


class RuntimeDir:
    """Call `create` and `lock` before anything else. Not for two processes at a time, which `lock` sees to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def workers(self) -> Path:
        """Where records and logs of workers are."""
        return self.path / "workers"

    @property
    def socket_path(self) -> Path:
        """Where clients find the daemon unless told otherwise."""
        return self.path / SOCKET_NAME

    @property
    def fabric_path(self) -> Path:
        """Where workers find the daemon unless told otherwise."""
        return self.path / FABRIC_NAME

    def log_path(self, worker_id: WorkerId) -> Path:
        """Where a spawned worker's output goes."""
        return self.workers / f"{worker_id}.log"

    def create(self) -> None:
        """Make the directory, for us alone; one that is there keeps its mode. Raises SettingsError where it cannot be
        made, is another user's or open to everybody: who can write there can pass for a worker."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.stat()
            if status.st_uid != os.getuid() and os.getuid() != 0:
                raise SettingsError(f"runtime directory {self.path}: belongs to user {status.st_uid}, not to us")
            if status.st_mode & 0o002:
                raise SettingsError(f"runtime directory {self.path}: everybody may write to it")
            self.workers.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"runtime directory {self.path}: {error.strerror}", param="runtime_dir") from error

    def lock(self) -> None:
        """Be the only daemon here, until `close` or the end of this process. Raises SettingsError naming the other."""
        # Not inherited by workers (Python opens with O_CLOEXEC): they outlive us, the lock must not.
        self._lock = os.open(self.path / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 32).decode(errors="replace").strip()
            self.close()
            trouble = f"runtime directory {self.path}: another daemon runs there, pid {holder or 'not known yet'}"
            raise SettingsError(trouble, param="runtime_dir") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give up the lock. Safe to call twice. The file stays: removing it would let two daemons lock two files."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_record(self, record: WorkerRecord) -> None:
        """Write down a worker; a reader sees the old record or the new one, never a part."""
        path = self._record_path(record.worker_id)
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(path)

    def read_records(self) -> list[WorkerRecord]:
        """All that is written down, by worker id. A file that is no record is passed over."""
        records = []
        for path in sorted(self.workers.glob("*.json")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                with path.open("rb") as file:
                    record = msgspec.json.decode(file.read(_RECORD_BYTES), type=WorkerRecord)
                if path == self._record_path(record.worker_id):
                    records.append(record)
        return records

    def remove_record(self, worker_id: WorkerId) -> None:
        """The worker's process is gone."""
        self._record_path(worker_id).unlink(missing_ok=True)

    def _record_path(self, worker_id: WorkerId) -> Path:
        return self.workers / f"{worker_id}.json"
