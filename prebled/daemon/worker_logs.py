"""Follows the output files of spawned workers and says what is in them again in the daemon's own log.

A file is read from its end as it is when this starts (what was written before is an earlier daemon's to tell), later
files from their beginning. Lines that a worker's own logging wrote as JSON keep level, event and values; anything else
(libraries, tracebacks) is passed on as it is. It knows nothing of processes: whoever writes the file writes it.

Bounds: a line (LINE_BYTES; the rest is cut off), lines per worker and second (LINES_PER_S, with a reserve; the rest is
counted and the count told), a file (truncated once it has been read).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import structlog

log = structlog.get_logger()

POLL_S = 0.25
LINE_BYTES = 32 * 1024
LINES_PER_S = 100.0
LINES_IN_RESERVE = 1000.0
READ_BYTES = 1024 * 1024  # per file and poll
FILE_BYTES = 16 * 1024 * 1024  # a file that has grown past this is emptied; unread only if it is past twice this

_LEVELS = {"debug", "info", "warning", "error", "critical"}
_OWN_KEYS = {"event", "level", "timestamp", "worker", "exc_info", "stack_info", "self"}
_LINE_ENDS = re.compile(rb"[\r\n]+")  # progress bars end their lines by carriage returns


class WorkerLogs:
    """Follows `folder`/ID.log for every ID there is."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._followed = {path: _Followed(path, path.stat().st_size) for path in folder.glob("*.log")}

    async def run(self) -> None:
        """Follow until cancelled; what is there then is still told."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self.poll(loop.time())
                await asyncio.sleep(POLL_S)
        finally:
            self.poll(loop.time())

    def poll(self, now: float) -> None:
        """Tell what is new, as of `now` (loop time)."""
        for path in sorted(self._folder.glob("*.log")):
            if path not in self._followed:
                self._followed[path] = _Followed(path, 0)
        for followed in self._followed.values():
            followed.poll(now, self._file_bytes)


class _Followed:
    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self._worker = path.stem
        self._offset = offset
        self._partial = b""
        self._may_tell = LINES_IN_RESERVE
        self._filled_at: float | None = None
        self._untold = 0

    def poll(self, now: float, file_bytes: int) -> None:
        self._fill(now)
        with contextlib.suppress(FileNotFoundError), self._path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._offset:  # somebody else has truncated it
                self._offset = 0
            file.seek(self._offset)
            new = file.read(READ_BYTES)
            self._offset += len(new)
            if self._offset >= max(size, file_bytes) or size >= 2 * file_bytes:
                # The worker appends, so it goes on at the new end. What it wrote since the read is lost.
                file.truncate(0)
                self._offset = 0
            self._take(new)

    def _fill(self, now: float) -> None:
        elapsed_s = 0.0 if self._filled_at is None else now - self._filled_at
        self._filled_at = now
        self._may_tell = min(self._may_tell + elapsed_s * LINES_PER_S, LINES_IN_RESERVE)
        if self._untold and self._may_tell >= 1:
            log.warning("worker log lines left out", worker=self._worker, lines=self._untold)
            self._untold = 0

    def _take(self, new: bytes) -> None:
        lines = _LINE_ENDS.split(self._partial + new)
        # One byte more than a line may have marks it as too long, whatever else of it comes.
        self._partial = lines.pop()[: LINE_BYTES + 1]
        for line in lines:
            if line:
                self._tell(line)

    def _tell(self, line: bytes) -> None:
        if self._may_tell < 1:
            self._untold += 1
            return
        self._may_tell -= 1
        level, event, fields = _parse(line)
        getattr(log, level)(event, worker=self._worker, **fields)


def _parse(line: bytes) -> tuple[str, str, dict[str, Any]]:
    """Level, event and further values of a line."""
    if len(line) > LINE_BYTES:
        return "info", line[:LINE_BYTES].decode(errors="replace") + " ...", {}
    try:
        parsed: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        parsed = None
    if not (isinstance(parsed, dict) and isinstance(parsed.get("event"), str)):
        return "info", line.decode(errors="replace"), {}
    level = parsed.get("level")
    values = {name: value for name, value in parsed.items() if name not in _OWN_KEYS}
    return (level if isinstance(level, str) and level in _LEVELS else "info"), parsed["event"], values
