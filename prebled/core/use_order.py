"""The order in which one worker used what it holds: a linked list, oldest first, with insertion beside an entry.

Rule it keeps: a prefix node is used no earlier than those below it, so the oldest entry is always a leaf of what the
worker holds, and taking the oldest is leaf-first LRU. It knows neither the tree nor other workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prebled.core.prefix_nodes import PrefixNode


class Holding:
    """What one worker has to do with one prefix node. `is_held`: believed to be in its cache (then it is in the use
    order, `used` being the time of its last use). `hits`: requests of the history window that shared it there."""

    __slots__ = ("hits", "is_held", "newer", "node", "older", "used")

    newer: Holding
    older: Holding

    def __init__(self, node: PrefixNode) -> None:
        self.node = node
        self.hits = 0
        self.is_held = False
        self.used = 0.0


class UseOrder:
    """Holdings of one worker, oldest first, and how many blocks they have."""

    __slots__ = ("_ring", "blocks", "capacity_blocks", "visits")

    def __init__(self, root: PrefixNode, capacity_blocks: int) -> None:
        """`root` stands for no node: it closes the ring."""
        self._ring = Holding(root)
        self._ring.newer = self._ring.older = self._ring
        self.blocks = 0
        self.capacity_blocks = capacity_blocks
        self.visits = 0

    def oldest(self) -> Holding | None:
        """The holding that goes first, if there is one."""
        first = self._ring.newer
        return first if first is not self._ring else None

    def use(self, holding: Holding, now: float) -> None:
        """Make it the newest; it becomes held if it was not."""
        ring = self._ring
        if holding.is_held:
            holding.older.newer = holding.newer
            holding.newer.older = holding.older
        else:
            holding.is_held = True
            self.blocks += holding.node.blocks
        holding.used = now
        last = ring.older
        holding.older = last
        holding.newer = ring
        last.newer = holding
        ring.older = holding

    def split(self, lower: Holding, upper: Holding) -> None:
        """`upper` is the part of a held node that was cut off above `lower`: used at the same time, and after it."""
        upper.is_held = True
        upper.used = lower.used
        upper.older = lower
        upper.newer = lower.newer
        lower.newer.older = upper
        lower.newer = upper

    def drop(self, holding: Holding) -> None:
        """It is no longer held."""
        holding.older.newer = holding.newer
        holding.newer.older = holding.older
        del holding.older, holding.newer
        holding.is_held = False
        self.blocks -= holding.node.blocks

    def held(self) -> list[Holding]:
        """All holdings, oldest first."""
        found = []
        holding = self._ring.newer
        while holding is not self._ring:
            found.append(holding)
            holding = holding.newer
        return found
