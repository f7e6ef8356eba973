"""Changes of the cache on their way to the daemon: put together while they wait, cut to a bounded size when they go.

Rule it keeps: what is given out, applied in order, ends in the same state as what was put in. It knows neither frames
nor time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from prebled.core.blocks import HASH_BYTES
from prebled.messages import KvChange, KvCleared, KvRemoved, KvStored

_OVERHEAD_BYTES = 32  # of a change in a message, beside its hashes: tag, parent, lengths; rounded up

C = TypeVar("C", bound=KvChange)


class KvBatch:
    """Neighbours of one kind become one change: removals are appended, a run is continued; nothing before a clearing
    is kept."""

    def __init__(self) -> None:
        self._changes: list[KvChange] = []
        self._hashes = bytearray()  # of the last change, which may still grow

    def __bool__(self) -> bool:
        return bool(self._changes)

    def add(self, changes: Iterable[KvChange]) -> None:
        """Take in what happened next."""
        for change in changes:
            if isinstance(change, KvCleared):
                self.clear()
                self._changes.append(change)
            elif self._is_continued_by(change):
                self._hashes += change.hashes
            else:
                self._close()
                self._changes.append(change)
                self._hashes += change.hashes

    def take(self) -> list[KvChange]:
        """All of it, in order; nothing is left."""
        self._close()
        changes, self._changes = self._changes, []
        return changes

    def clear(self) -> None:
        """Forget what was not taken."""
        self._changes.clear()
        self._hashes.clear()

    def _is_continued_by(self, change: KvStored | KvRemoved) -> bool:
        match (self._changes[-1] if self._changes else None), change:
            case KvRemoved(), KvRemoved():
                return True
            case KvStored(), KvStored(parent=parent):
                return parent == bytes(self._hashes[-HASH_BYTES:])
        return False

    def _close(self) -> None:
        match self._changes[-1] if self._changes else None:
            case KvStored(parent=parent):
                self._changes[-1] = KvStored(parent, bytes(self._hashes))
            case KvRemoved():
                self._changes[-1] = KvRemoved(bytes(self._hashes))
        self._hashes.clear()


def parts(changes: Iterable[C], most_bytes: int) -> Iterator[tuple[C, ...]]:
    """The same in pieces that encode to about `most_bytes` at most; what is longer by itself is cut."""
    part: list[C] = []
    size = 0
    for change in changes:
        for piece in _cut(change, most_bytes):
            more = _OVERHEAD_BYTES + (0 if isinstance(piece, KvCleared) else len(piece.hashes))
            if part and size + more > most_bytes:
                yield tuple(part)
                part, size = [], 0
            part.append(piece)
            size += more
    if part:
        yield tuple(part)


def _cut(change: C, most_bytes: int) -> Iterator[C]:
    """Pieces with at most so many bytes of hashes; a run's second piece follows the last block of its first."""
    if isinstance(change, KvCleared) or len(change.hashes) <= most_bytes:
        yield change
        return
    stride = max(most_bytes // HASH_BYTES, 1) * HASH_BYTES
    for start in range(0, len(change.hashes), stride):
        follows = (
            {"parent": change.hashes[start - HASH_BYTES : start]} if start and isinstance(change, KvStored) else {}
        )
        yield msgspec.structs.replace(change, hashes=change.hashes[start : start + stride], **follows)
