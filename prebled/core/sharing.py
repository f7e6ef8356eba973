"""How many requests in flight on a worker share a prefix.

Every request is counted under the hashes at its 1st, 2nd, 4th, 8th, ... block. Hashes are chained: who is counted under
the hash at block d has the same first d blocks. Between half of any length and that length lies a power of two:
counting costs the logarithm of the prompt and asking costs one look-up, whatever the tree looks like.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from struct import Struct

from prebled.core.blocks import HASH_BYTES


def landmark(hashes: bytes, blocks: int) -> bytes:
    """The name of the prefix that stands for the first `blocks` (at least one) of a path: the hash at the least power
    of two that is at least half of them."""
    depth = 1 << ((blocks + 1) // 2 - 1).bit_length()
    return hashes[(depth - 1) * HASH_BYTES : depth * HASH_BYTES]


def landmarks(hashes: bytes) -> tuple[bytes, ...]:
    """The hashes at a path's 1st, 2nd, 4th, 8th, ... block."""
    marks: tuple[bytes, ...] = _picker((len(hashes) // HASH_BYTES).bit_length()).unpack_from(hashes)
    return marks


@functools.cache
def _picker(count: int) -> Struct:
    """Takes so many landmarks (the logarithm of a path) out of it in C, several times as fast as slices of each."""
    gaps = [HASH_BYTES * ((1 << rank) - 1) for rank in range(count - 1)]
    return Struct("".join([f"{HASH_BYTES}s"] * bool(count) + [f"{gap}x{HASH_BYTES}s" for gap in gaps]))


class Sharing:
    """Counts by slot and landmark. Bounded by the requests in flight."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, defaultdict[bytes, int]] = defaultdict(lambda: defaultdict(int))

    def book(self, slot: int, hashes: bytes) -> tuple[bytes, ...]:
        """A request with this path is on its way there; what is returned ends it."""
        counts = self._counts[slot]
        marks = landmarks(hashes)
        for mark in marks:
            counts[mark] += 1
        return marks

    def release(self, slot: int, marks: tuple[bytes, ...]) -> None:
        """That request has left."""
        counts = self._counts[slot]
        for mark in marks:
            if counts[mark] == 1:
                del counts[mark]
            else:
                counts[mark] -= 1

    def count(self, slot: int, hashes: bytes, blocks: int) -> int:
        """Requests in flight there that have at least half of the first `blocks` of this path."""
        counts = self._counts.get(slot)
        return counts.get(landmark(hashes, blocks), 0) if counts and blocks else 0
