"""What one worker says of its cache: snapshots and the changes after them, put together so that the sum is true.

Changes come as frames of the worker's numbered stream, released in order by the sequencer; a snapshot comes over the
other socket and says which frame it was taken after. The rules kept here: a snapshot takes effect whole, with all
changes after it and none before it, whichever arrived first; after a hole in the stream a snapshot is asked for, and
one that is older than the hole is not believed.

While a snapshot is awaited, changes are still passed on (a block that is reported removed is gone, whatever else is
unknown), and kept, to be applied again on top of the snapshot. Pure: `now` (seconds, any monotonic origin) is an
argument.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import msgspec

from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import GetSnapshot, KvChanged, KvSnapshot, KvStored

KEPT_FRAMES = 1024
"""Frames kept while a snapshot is awaited. Full: the oldest goes, and the snapshot must be newer than it."""


class KvHeld(msgspec.Struct, frozen=True):
    """All that the cache holds, parents before children."""

    runs: tuple[KvStored, ...]


KvOutput: TypeAlias = KvHeld | KvChanged | GetSnapshot


class KvStream:
    """Made when a worker says Hello: its first snapshot comes unasked, before `open`. An ask that brings nothing for
    `patience_s` is repeated."""

    def __init__(self, *, patience_s: float, counts: StreamCounts) -> None:
        self._patience_s = patience_s
        self._counts = counts
        self._is_open = False
        self._is_awaiting = True
        self._asked_at = 0.0
        self._kept: deque[KvChanged] = deque()  # released since a snapshot is awaited
        self._must_cover = 0  # frames up to this one cannot be had: only a snapshot tells what they said
        self._covered = 0  # frames up to this one are in the snapshot that was applied
        self._parts: list[KvSnapshot] = []

    def open(self, next_seq: int, now: float) -> list[KvOutput]:
        """The worker is ready, and the stream begins at this frame."""
        self._is_open = True
        self._must_cover = next_seq - 1
        return self._settle(now) if self._parts and self._parts[-1].is_last else self._ask(now)

    def take_frame(self, frame: KvChanged) -> list[KvOutput]:
        """The next frame of the stream that is about the cache."""
        if frame.seq <= self._covered:
            return []
        if self._is_awaiting:
            if len(self._kept) >= KEPT_FRAMES:
                self._must_cover = self._kept.popleft().seq
            self._kept.append(frame)
        return [frame]

    def take_hole(self, last_seq: int, now: float) -> list[KvOutput]:
        """Frames up to this one cannot be had any more."""
        if last_seq <= self._covered:
            return []
        self._must_cover = max(self._must_cover, last_seq)
        return self.want(now)

    def want(self, now: float) -> list[KvOutput]:
        """A snapshot is wanted. One that is awaited already will do: what it does not hold is applied after it."""
        return [] if self._is_awaiting else self._ask(now)

    def take_snapshot(self, part: KvSnapshot, now: float) -> list[KvOutput]:
        """A snapshot, or a part of one, arrived."""
        if part.part == 0:
            self._parts.clear()
        if not self._is_awaiting or not self._continues(part):
            self._counts.stale_snapshots += 1
            self._parts.clear()
            return []
        self._parts.append(part)
        return self._settle(now) if part.is_last and self._is_open else []

    def _continues(self, part: KvSnapshot) -> bool:
        if part.part != len(self._parts):
            return False
        last = self._parts[-1] if self._parts else None
        return last is None or (last.last_seq == part.last_seq and not last.is_last)

    def tick(self, now: float) -> list[KvOutput]:
        """Time passed: ask again if the last ask has brought nothing."""
        is_late = self._is_open and self._is_awaiting and now - self._asked_at >= self._patience_s
        return self._ask(now) if is_late else []

    def _ask(self, now: float) -> list[KvOutput]:
        self._is_awaiting = True
        self._asked_at = now
        self._counts.snapshots_asked += 1
        return [GetSnapshot()]

    def _settle(self, now: float) -> list[KvOutput]:
        """Apply the snapshot that is whole now, if it is new enough."""
        parts, self._parts = self._parts, []
        last_seq = parts[0].last_seq
        if last_seq < self._must_cover:
            self._counts.stale_snapshots += 1
            return self._ask(now)
        later = [frame for frame in self._kept if frame.seq > last_seq]
        self._kept.clear()
        self._is_awaiting = False
        self._covered = last_seq
        self._counts.snapshots += 1
        return [KvHeld(tuple(run for part in parts for run in part.runs)), *later]
