"""What the prefix tree knows of one path: how far it goes, and how far each worker holds it.

It is a view of one moment; the tree tells a stale one by its count of changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prebled.core.blocks import HASH_BYTES

if TYPE_CHECKING:
    from prebled.core.prefix_nodes import PrefixNode

FEW_BITS = 8
"""Up to so many set bits it is quicker to visit each than to unpack the whole mask."""


def common_blocks(run: bytes, path: bytes) -> int:
    """How many leading blocks two runs have in common, found by halving what is not compared yet. Exact even where the
    hashes are no chains: two runs that share a later hash by chance are told apart where they first differ."""
    agreed, differs = 0, min(len(run), len(path)) // HASH_BYTES + 1
    while differs - agreed > 1:
        middle = (agreed + differs) // 2
        start, stop = agreed * HASH_BYTES, middle * HASH_BYTES
        if run[start:stop] == path[start:stop]:
            agreed = middle
        else:
            differs = middle
    return agreed


class Match:
    """`nodes`: prefix nodes that lie on the path whole; `partial`: one more, of which the path has only the first
    `partial_blocks`. `blocks`: how much of the path the tree has in all, held or not.

    `levels`: (blocks, holders) from the root down. Those workers (bit per slot) hold at least so much of the path;
    deeper levels have fewer workers, and a worker's share is that of its deepest level."""

    __slots__ = ("blocks", "changes", "hashes", "levels", "nodes", "partial", "partial_blocks")

    def __init__(
        self,
        hashes: bytes,
        nodes: list[PrefixNode],
        levels: list[tuple[int, int]],
        blocks: int,
        partial: PrefixNode | None,
        partial_blocks: int,
        changes: int,
    ) -> None:
        self.hashes = hashes
        self.nodes = nodes
        self.levels = levels
        self.blocks = blocks
        self.partial = partial
        self.partial_blocks = partial_blocks
        self.changes = changes

    def held_by(self, slot: int) -> int:
        """How many blocks of the path one worker holds."""
        for blocks, holders in reversed(self.levels):
            if holders >> slot & 1:
                return blocks
        return 0

    def held_blocks(self, slots: int) -> NDArray[np.float64]:
        """How many blocks of the path each worker holds, for slots 0 to `slots` - 1."""
        return self.held_tokens(slots, 1, self.blocks)

    def held_tokens(self, slots: int, block_tokens: int, most_blocks: int) -> NDArray[np.float64]:
        """The same in tokens, of the first `most_blocks` blocks. Floats, since costs are made of them."""
        held = np.zeros(slots)
        for blocks, holders in self.levels:
            tokens = min(blocks, most_blocks) * block_tokens
            if holders.bit_count() <= FEW_BITS:
                while holders:
                    low = holders & -holders
                    held[low.bit_length() - 1] = tokens
                    holders ^= low
            else:
                held[_unpack(holders, slots)] = tokens
        return held


def _unpack(mask: int, slots: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(mask.to_bytes((slots + 7) // 8, "little"), np.uint8)
    return np.unpackbits(packed, count=slots, bitorder="little").view(np.bool_)
