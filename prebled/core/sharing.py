"""How many requests in flight on a worker share a prefix.

Every request is counted under the hashes at its 1st, 2nd, 4th, 8th, ... block. Hashes are chained: who is counted under
the hash at block d has the same first d blocks. Between half of any length and that length lies a power of two:
counting costs the logarithm of the prompt and asking costs one look-up, whatever the tree looks like.
"""

from __future__ import annotations

from prebled.core.blocks import HASH_BYTES


def landmark(hashes: bytes, blocks: int) -> bytes:
    """The name of the prefix that stands for the first `blocks` (at least one) of a path: the hash at the least power
    of two that is at least half of them."""
    depth = 1 << ((blocks + 1) // 2 - 1).bit_length()
    return hashes[(depth - 1) * HASH_BYTES : depth * HASH_BYTES]


class Sharing:
    """Counts by slot and landmark. Bounded by the requests in flight."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[bytes, int]] = {}

    def book(self, slot: int, hashes: bytes) -> tuple[bytes, ...]:
        """A request with this path is on its way there; what is returned ends it."""
        counts = self._counts.setdefault(slot, {})
        found = []
        stop = HASH_BYTES
        while stop <= len(hashes):
            mark = hashes[stop - HASH_BYTES : stop]
            counts[mark] = counts.get(mark, 0) + 1
            found.append(mark)
            stop *= 2
        return tuple(found)

    def release(self, slot: int, marks: tuple[bytes, ...]) -> None:
        """That request has left."""
        counts = self._counts[slot]
        for mark in marks:
            left = counts[mark] - 1
            if left:
                counts[mark] = left
            else:
                del counts[mark]

    def count(self, slot: int, hashes: bytes, blocks: int) -> int:
        """Requests in flight there that have at least half of the first `blocks` of this path."""
        counts = self._counts.get(slot)
        return counts.get(landmark(hashes, blocks), 0) if counts and blocks else 0
