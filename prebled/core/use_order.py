"""What one worker holds, and in which order it used it: a linked list, oldest first.

Only the end of a path is marked when the path is used. A holding with held ones below it cannot go before they do, and
when the last of them goes it takes that one's place if it was not used later itself: so it stands as if it had been
marked with each of them, and a use costs the same whatever the length of the path. Taking the oldest is leaf-first LRU.

Rules it keeps: the list is sorted by number of use; every held leaf is in it; others may be. It knows neither the tree
nor other workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prebled.core.prefix_nodes import PrefixNode

MOST_CREDIT = 1 << 20
"""Blocks that may be searched through at once."""


class Holding:
    """That one worker holds one prefix node. Once it is over (`is_held` false) it never begins again: the next one is
    another object, so that whoever kept this one knows.

    `parent`: its holding of the node above; `below`: how many holdings have this one as their parent (for the root one
    more, so that it is never a leaf). `flights`: requests in flight whose path ends here; `visits`: those of the
    history window. `used`, `stored`, `removed`: numbers of its last use, and of when it became known that the worker
    has stored the node, and that it has removed it; 0: never. What is not known to be stored is expected: a request in
    flight is to compute it."""

    __slots__ = (
        "below",
        "flights",
        "is_held",
        "newer",
        "node",
        "older",
        "parent",
        "removed",
        "stored",
        "used",
        "visits",
    )

    newer: Holding  # OFF: not in the list
    older: Holding

    def __init__(self, node: PrefixNode, parent: Holding, used: int, visits: int) -> None:
        self.node = node
        self.parent = parent
        self.used = used
        self.visits = visits
        self.newer = self.older = OFF
        self.below = self.flights = self.stored = self.removed = 0
        self.is_held = True


OFF = Holding.__new__(Holding)
"""Stands where a holding that is not in the list would have its neighbours."""


class UseOrder:
    """Holdings of one worker, and how many blocks they have. `bit`: its bit in `PrefixNode.holders`. `root`: the
    holding of the tree's root, which closes the list. `visits`: requests of the history window.

    `reports`: the worker says itself what it holds. `has_forgotten`: since its last snapshot the tree forgot, for want
    of space, what it had reported. `asked_at`: when a snapshot was last asked for, in seconds. `credit`: how many
    blocks may be searched through for those that the worker names."""

    __slots__ = (
        "asked_at",
        "bit",
        "blocks",
        "capacity_blocks",
        "credit",
        "has_forgotten",
        "reports",
        "root",
        "slot",
        "visits",
    )

    def __init__(self, slot: int, root: PrefixNode, capacity_blocks: int) -> None:
        self.slot = slot
        self.bit = 1 << slot
        self.root = Holding(root, OFF, 1 << 62, 0)  # used later than all others, so that it takes no place of theirs
        self.root.newer = self.root.older = self.root
        self.root.below = self.root.stored = 1
        self.blocks = 0
        self.capacity_blocks = capacity_blocks
        self.visits = 0
        self.reports = False
        self.has_forgotten = False
        self.asked_at = float("-inf")
        self.credit = MOST_CREDIT

    def oldest(self) -> Holding | None:
        """The leaf that goes first, if anything is held. Takes inner ones that stand before it off the list: what is
        below them was used later, so they come back in its place."""
        root = self.root
        first = root.newer
        while first is not root:
            if not first.below:
                return first
            self._unlink(first)
            first = root.newer
        return None

    def touch(self, holding: Holding, number: int) -> None:
        """Make it the newest."""
        root = self.root
        newer = holding.newer
        if newer is not OFF:
            newer.older = older = holding.older
            older.newer = newer
        holding.used = number
        last = root.older
        holding.older = last
        holding.newer = root
        last.newer = root.older = holding

    def add(self, node: PrefixNode, parent: Holding, number: int, visits: int) -> Holding:
        """A new holding. If nothing is below it, it has to be touched."""
        if not parent.below and parent.newer is not OFF:
            self._unlink(parent)
        parent.below += 1
        self.blocks += len(node.run) >> 3
        return Holding(node, parent, number, visits)

    def split(self, lower: Holding, node: PrefixNode) -> Holding:
        """That of a node which was cut off above that of `lower`."""
        upper = Holding(node, lower.parent, lower.used, 0)
        upper.below = 1
        upper.stored = lower.stored
        upper.removed = lower.removed
        lower.parent = upper
        return upper

    def drop(self, leaf: Holding) -> None:
        """It is no longer held. Nothing below it may be."""
        parent = leaf.parent
        parent.below -= 1
        if parent.used <= leaf.used:
            if parent.newer is not OFF:
                self._unlink(parent)
            parent.used = leaf.used
            older, newer = leaf.older, leaf.newer
            parent.older = older
            parent.newer = newer
            older.newer = newer.older = parent
            leaf.older = leaf.newer = OFF
        else:
            self._unlink(leaf)
        leaf.is_held = False
        self.blocks -= len(leaf.node.run) >> 3

    def victims(self) -> Iterator[Holding]:
        """Holdings in the order in which LRU would take them. Changes nothing."""
        root = self.root
        gone: dict[Holding, int] = {}
        entry = root.newer
        while entry is not root:
            leaf = entry
            while leaf.below == gone.get(leaf, 0) and leaf.used <= entry.used:
                yield leaf
                leaf = leaf.parent
                gone[leaf] = gone.get(leaf, 0) + 1
            entry = entry.newer

    def held(self) -> list[Holding]:
        """All holdings, each after those below it."""
        root = self.root
        found = []
        met: dict[Holding, int] = {}
        entry = root.newer
        while entry is not root:
            holding = entry
            while met.get(holding, 0) == holding.below:
                met[holding] = -1  # not twice
                found.append(holding)
                holding = holding.parent
                met[holding] = met.get(holding, 0) + 1
            entry = entry.newer
        return found

    def listed(self) -> list[Holding]:
        """What is in the list, oldest first. For tests."""
        found = []
        entry = self.root.newer
        while entry is not self.root:
            found.append(entry)
            entry = entry.newer
        return found

    def _unlink(self, holding: Holding) -> None:
        older, newer = holding.older, holding.newer
        older.newer = newer
        newer.older = older
        holding.older = holding.newer = OFF
