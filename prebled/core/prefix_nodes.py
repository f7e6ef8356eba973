"""The prefix nodes: a radix tree of runs of block hashes, who holds which, and an index to find a node by its hash.

Rules it keeps. A worker holds a node whole or not at all, and only with all before it. A node lives while a worker
holds it, a request of the history window ended at it, or two nodes below it live; with only one below, the two are
joined: caches that let blocks go one by one would else leave the history in pieces of a block. The index has the first
and the last hash of each run that some worker reported, not one entry per block. Where two nodes have an equal hash at
an end, which chance does not bring, the index has one of them and reports about the other are not understood. It knows
neither the window, nor bounds, nor messages.
"""

from __future__ import annotations

import msgspec

from prebled.core.blocks import HASH_BYTES
from prebled.core.use_order import Holding, UseOrder


class PrefixNode(msgspec.Struct, eq=False):
    """A run of blocks. `first`: the run's first hash; `end`: blocks from the first of the prompt to the end of this
    run. `holders`: bit per slot of the workers that hold it; `holdings`: the same workers, and with their last holding
    those that had requests of the history window end here. `children`: by their first hash; None: there are none.
    `only`: the child, if there is just one: paths are mostly chains, which take half the time to follow so."""

    run: bytes
    first: bytes
    parent: PrefixNode | None
    end: int
    holders: int
    holdings: dict[int, Holding]
    children: dict[bytes, PrefixNode] | None = None
    only: PrefixNode | None = None
    is_indexed: bool = False

    @property
    def blocks(self) -> int:
        """Length of the run."""
        return len(self.run) // HASH_BYTES

    def path(self) -> bytes:
        """The hashes from the first block of the prompt to the end of this run."""
        runs = []
        node = self
        while node.parent is not None:
            runs.append(node.run)
            node = node.parent
        return b"".join(reversed(runs))

    def shared(self, slot: int, most_nodes: int) -> int:
        """Requests of the history window that had all of this run and were placed there. Looks at so many nodes at the
        most, this one and those below it, and leaves out the others."""
        found = 0
        nodes = [self]
        for node in nodes:
            holding = node.holdings.get(slot)
            if holding is not None:
                found += holding.visits
            if node.children is not None and len(nodes) < most_nodes:
                nodes.extend(node.children.values())
                del nodes[most_nodes:]
        return found


class PrefixNodes:
    """See the module. `changes` counts what makes a `Match` stale; `uses` numbers uses and reports, over all workers;
    `collisions` counts ends of nodes that the index could not take. `max_blocks` and `max_nodes` are for others to
    keep."""

    def __init__(self, max_blocks: int, max_nodes: int) -> None:
        self.max_blocks = max_blocks
        self.max_nodes = max_nodes
        self.root = PrefixNode(b"", b"", None, 0, 0, {})
        self.orders: dict[int, UseOrder] = {}
        self.index: dict[bytes, PrefixNode] = {}
        self.blocks = 0
        self.nodes = 0
        self.changes = 0
        self.uses = 0
        self.collisions = 0

    # --- nodes ---

    def grow(self, parent: PrefixNode, run: bytes, order: UseOrder, above: Holding) -> Holding:
        """A new leaf, which one worker holds, and is to touch; `above` is its holding of the leaf's parent."""
        first = run[:HASH_BYTES]
        blocks = len(run) >> 3
        leaf = PrefixNode(run, first, parent, parent.end + blocks, order.bit, {})
        if parent.children is None:
            parent.children = {first: leaf}
            parent.only = leaf
        else:
            parent.children[first] = leaf
            parent.only = None
        self.blocks += blocks
        self.nodes += 1
        self.changes += 1
        holding = leaf.holdings[order.slot] = order.add(leaf, above, self.uses, 0)
        return holding

    def split(self, lower: PrefixNode, blocks: int) -> PrefixNode:
        """Cut a node after so many of its blocks; the new upper part is returned. The lower part stays the same object
        with the same holdings, so that visits which end there still do."""
        parent, run, index = lower.parent, lower.run, self.index
        assert parent is not None
        assert parent.children is not None
        assert 0 < blocks < len(run) >> 3
        cut = blocks * HASH_BYTES
        upper = PrefixNode(run[:cut], lower.first, parent, parent.end + blocks, lower.holders, {})
        parent.children[upper.first] = upper
        if parent.only is not None:
            parent.only = upper
        lower.run = run[cut:]
        lower.first = lower.run[:HASH_BYTES]
        lower.parent = upper
        upper.children = {lower.first: lower}
        upper.only = lower
        if lower.is_indexed:
            if index.get(upper.first) is lower:
                index[upper.first] = upper
            if len(lower.run) > HASH_BYTES:
                self._add_to_index(lower.first, lower)
            if blocks > 1:
                self._add_to_index(upper.run[-HASH_BYTES:], upper)
            upper.is_indexed = True
        for slot, holding in lower.holdings.items():
            if holding.is_held:
                upper.holdings[slot] = self.orders[slot].split(holding, upper)
        self.nodes += 1
        self.changes += 1
        return upper

    def tidy(self, node: PrefixNode, slot: int) -> None:
        """Forget what says nothing any more: a holding that is over and has no visits, and nodes without a reason to
        live."""
        holdings = node.holdings
        holding = holdings[slot]
        if not holding.is_held and not holding.visits:
            del holdings[slot]
            if not holdings:
                self._prune(node)

    def list_in_index(self, node: PrefixNode) -> None:
        """Some worker reported this node."""
        node.is_indexed = True
        self._add_to_index(node.first, node)
        if len(node.run) > HASH_BYTES:
            self._add_to_index(node.run[-HASH_BYTES:], node)

    def _add_to_index(self, key: bytes, node: PrefixNode) -> None:
        if key in self.index:
            self.collisions += 1
        else:
            self.index[key] = node

    def _unlist(self, node: PrefixNode) -> None:
        """Take a node out of the index."""
        node.is_indexed = False
        index = self.index
        for key in (node.first, node.run[-HASH_BYTES:]):
            if index.get(key) is node:
                del index[key]

    def _prune(self, node: PrefixNode) -> None:
        """Take out a node that nobody holds and where no request ended, and those above it that have lived for it
        alone, as far as nothing is below them; the next one is joined to what is."""
        while (parent := node.parent) is not None and not node.holdings:
            if node.children is not None:
                if node.only is not None:
                    self._join(node, node.only)
                return
            children = parent.children
            assert children is not None
            del children[node.first]
            if not children:
                parent.children = parent.only = None
            elif len(children) == 1:
                (parent.only,) = children.values()
            if node.is_indexed:
                self._unlist(node)
            self.blocks -= len(node.run) >> 3
            self.nodes -= 1
            self.changes += 1
            node = parent

    def _join(self, upper: PrefixNode, lower: PrefixNode) -> None:
        """Undo a split. Nobody holds either, so neither has to be found by its hash; the lower part stays the same
        object with the same holdings, all of them over."""
        for node in (upper, lower):
            if node.is_indexed:
                self._unlist(node)
        parent = upper.parent
        assert parent is not None
        assert parent.children is not None
        parent.children[upper.first] = lower
        if parent.only is not None:
            parent.only = lower
        lower.run = upper.run + lower.run
        lower.first = upper.first
        lower.parent = parent
        self.nodes -= 1
        self.changes += 1

    # --- holdings ---

    def hold(self, node: PrefixNode, order: UseOrder, above: Holding) -> Holding:
        """The worker holds this node, which it did not, from now on; `above` is its holding of the node's parent."""
        holdings, slot = node.holdings, order.slot
        old = holdings.get(slot)
        holding = holdings[slot] = order.add(node, above, self.uses, 0 if old is None else old.visits)
        node.holders |= order.bit
        return holding

    def drop(self, leaf: Holding, order: UseOrder) -> None:
        """It holds this no more, and nothing below it."""
        node = leaf.node
        order.drop(leaf)
        node.holders ^= order.bit
        if not leaf.visits:
            holdings = node.holdings
            del holdings[order.slot]
            if not holdings:
                self._prune(node)

    def below(self, top: Holding, order: UseOrder) -> list[Holding]:
        """This holding and all those of the same worker below it, each after its parent."""
        slot, bit = order.slot, order.bit
        found = [top]
        for holding in found:
            if holding.below:
                children = holding.node.children
                assert children is not None
                found.extend(child.holdings[slot] for child in children.values() if child.holders & bit)
        return found


class Visit(msgspec.Struct, eq=False):
    """One request: where its path ends, on which worker, and its number in the order of uses.

    `time`: when it was booked, in seconds; `is_counted`: it is in the history window, and was not taken back. `found`:
    the worker's deepest holding on the path when the request was booked (that of the root: none); None once the request
    has ended. `holding` None: the path is empty."""

    holding: Holding | None
    found: Holding | None
    slot: int
    number: int
    time: float
    is_counted: bool = True
