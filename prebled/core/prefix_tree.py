"""The global prefix tree: which prefixes were asked for, who holds them, and how often they were shared lately.

A path-compressed radix tree over chained block hashes (Preble, section 3.2). A prefix node is a run of blocks that
occur only together; the run is one string of 8-byte hashes. A worker holds a node whole or not at all: where a worker
holds, evicts or asks for part of one, the node is split there.

Rules it keeps. What a worker holds is closed upwards (a block is held only with all before it), leaves go first, and
never more than its capacity. A node lives while a worker holds it or a request of the history window shared it. At
most `max_blocks` blocks, in at most an eighth as many nodes (short runs cost more memory per block): past either bound
the history is shortened, oldest first, which drops the coldest nodes that nobody holds; then the coldest holdings go.
`check_invariants` states all of it. It does not know tokens, requests or costs; workers are small numbers (slots), and
time is passed in, never going back.

Two prefixes with an equal 64-bit hash would be taken for one: with n blocks in the tree a chance of n^2 / 2^65 in all,
and the harm is one placement that finds less cached than it was promised.
"""

from __future__ import annotations

from collections import deque

import msgspec

from prebled.core.blocks import HASH_BYTES
from prebled.core.matching import Match, common_blocks
from prebled.core.prefix_nodes import PrefixNode, Visit, check_tree
from prebled.core.use_order import Holding, UseOrder

BLOCKS_PER_NODE = 8
"""At the bound, nodes hold at least this many blocks on average: a node costs as much memory as about 70 blocks."""


class TreeStatistics(msgspec.Struct, frozen=True):
    """Sizes of the tree. `visits`: requests in the history window; `held_blocks`: per slot."""

    blocks: int
    nodes: int
    visits: int
    held_blocks: dict[int, int]


class PrefixTree:
    """See the module. Paths are given as bytes: the 8-byte hashes of all blocks from the first one on."""

    def __init__(self, *, max_blocks: int, window_s: float) -> None:
        self.blocks = 0
        self.nodes = 0
        self._max_blocks = max_blocks
        self._max_nodes = max(max_blocks // BLOCKS_PER_NODE, 1)
        self._window_s = window_s
        self._root = PrefixNode(b"", None)
        self._orders: dict[int, UseOrder] = {}
        self._visits: deque[Visit] = deque()
        self._changes = 0

    # --- workers ---

    def set_capacity(self, slot: int, capacity_blocks: int) -> None:
        """A worker that can hold so many blocks; new, or known with another size."""
        order = self._orders.get(slot)
        if order is None:
            self._orders[slot] = UseOrder(self._root, capacity_blocks)
        else:
            order.capacity_blocks = capacity_blocks
            self._fit(slot, order)

    def forget_worker(self, slot: int) -> None:
        """It holds nothing any more. Its hits stay until they leave the window."""
        order = self._orders.get(slot)
        if order is not None:
            for holding in order.held():
                self._drop(slot, order, holding)

    def use_order(self, slot: int) -> UseOrder:
        """What the worker holds, oldest first. Not to be changed."""
        return self._orders[slot]

    def visits(self, slot: int) -> int:
        """Requests of the history window that were placed there. A slot without any may be given to another worker."""
        order = self._orders.get(slot)
        return order.visits if order else 0

    # --- reading ---

    def match(self, hashes: bytes) -> Match:
        """How much of this path the tree has, and who holds it. Changes nothing."""
        nodes: list[PrefixNode] = []
        levels: list[tuple[int, int]] = []
        children = self._root.children
        start = holders = 0
        while children and (child := children.get(hashes[start : start + HASH_BYTES])):
            run = child.run
            if child.holders != holders:
                if holders:
                    levels.append((start // HASH_BYTES, holders))
                holders = child.holders
            if not hashes.startswith(run, start):
                common = common_blocks(run, hashes[start : start + len(run)])
                blocks = start // HASH_BYTES + common
                if holders:
                    levels.append((blocks, holders))
                return Match(hashes, nodes, levels, blocks, child, common, self._changes)
            nodes.append(child)
            start += len(run)
            children = child.children
        blocks = start // HASH_BYTES
        if holders:
            levels.append((blocks, holders))
        return Match(hashes, nodes, levels, blocks, None, 0, self._changes)

    def hits(self, hashes: bytes) -> dict[int, int]:
        """Per slot: requests of the window whose path had all of these blocks."""
        match = self.match(hashes)
        if match.blocks * HASH_BYTES < len(hashes):
            return {}
        node = match.partial or (match.nodes[-1] if match.nodes else self._root)
        return {slot: holding.hits for slot, holding in node.holdings.items() if holding.hits}

    # --- writing ---

    def book(self, match: Match, slot: int, now: float) -> Visit:
        """A request with this path was placed there: it counts in the window, and the worker holds the path from now
        on, as the newest it has. `match` is that of the path; a stale one is matched again."""
        path = self._path(match)
        order = self._orders[slot]
        if not path:
            return Visit(None, slot, now)
        self._use(path, slot, order, now, 1)
        visit = Visit(path[-1], slot, now)
        self._visits.append(visit)
        order.visits += 1
        if self._is_over():
            self._bound()
        return visit

    def withdraw(self, visit: Visit, keep_blocks: int) -> None:
        """Take a booking back: its hit, and what the worker was to hold of its path past the first `keep_blocks`,
        unless other requests of the window share that there."""
        node, visit.node = visit.node, None
        if node is None:
            return
        path = self._path_to(node)
        slot, order = visit.slot, self._orders[visit.slot]
        order.visits -= 1
        start = sum(node.blocks for node in path)
        for node in reversed(path):
            start -= node.blocks
            holding = node.holdings[slot]
            holding.hits -= 1
            if holding.is_held and not holding.hits and start >= keep_blocks and not self._held_children(node, slot):
                self._drop(slot, order, holding)
            else:
                self._tidy(node, slot, holding)

    def stored(self, hashes: bytes, slot: int, now: float) -> None:
        """The worker says that it holds this path."""
        self._use(self._path(self.match(hashes)), slot, self._orders[slot], now, 0)
        if self._is_over():
            self._bound()

    def evicted(self, hashes: bytes, slot: int, keep_blocks: int) -> None:
        """The worker says that of this path it holds no more than the first `keep_blocks`."""
        match = self.match(hashes)
        if match.blocks <= keep_blocks:
            return
        order = self._orders[slot]
        depth = 0
        for node in [*match.nodes, *([match.partial] if match.partial else [])]:
            if depth + node.blocks > keep_blocks:
                if depth < keep_blocks and node.holders >> slot & 1:
                    self._split(node, keep_blocks - depth)
                self._drop_below(node, slot, order)
                return
            depth += node.blocks

    def advance(self, now: float, limit: int | None = None) -> None:
        """Let requests older than the window leave it; at most `limit` of them, so that a long pause is caught up with
        in small steps."""
        horizon = now - self._window_s
        visits = self._visits
        while visits and visits[0].time <= horizon and limit != 0:
            self._expire(visits.popleft())
            limit = limit - 1 if limit is not None else None

    def statistics(self) -> TreeStatistics:
        """Sizes, for people and for tests."""
        held = {slot: order.blocks for slot, order in self._orders.items()}
        return TreeStatistics(self.blocks, self.nodes, len(self._visits), held)

    # --- nodes ---

    def _path(self, match: Match) -> list[PrefixNode]:
        """The nodes of exactly this path, made or split where they are missing."""
        if match.changes != self._changes:
            match = self.match(match.hashes)
        path = match.nodes
        end = match.blocks * HASH_BYTES
        if match.partial is not None:
            path = [*path, self._split(match.partial, match.partial_blocks)]
        if end < len(match.hashes):
            parent = path[-1] if path else self._root
            leaf = PrefixNode(match.hashes[end:], parent)
            if parent.children is None:
                parent.children = {}
            parent.children[leaf.run[:HASH_BYTES]] = leaf
            self.blocks += leaf.blocks
            self.nodes += 1
            self._changes += 1
            path = [*path, leaf]
        return path

    def _split(self, lower: PrefixNode, blocks: int) -> PrefixNode:
        """Cut a node after so many of its blocks; the new upper part is returned. The lower part stays the same object,
        so that visits which end there still do."""
        parent = lower.parent
        assert parent is not None
        assert parent.children is not None
        assert 0 < blocks < lower.blocks
        upper = PrefixNode(lower.run[: blocks * HASH_BYTES], parent)
        parent.children[upper.run[:HASH_BYTES]] = upper
        lower.run = lower.run[blocks * HASH_BYTES :]
        lower.parent = upper
        upper.children = {lower.run[:HASH_BYTES]: lower}
        upper.holders = lower.holders
        for slot, holding in lower.holdings.items():
            above = upper.holdings[slot] = Holding(upper)
            above.hits = holding.hits
            if holding.is_held:
                self._orders[slot].split(holding, above)
        self.nodes += 1
        self._changes += 1
        return upper

    def _tidy(self, node: PrefixNode, slot: int, holding: Holding) -> None:
        """Remove what says nothing any more: a holding without hits that is not held, a node without holdings."""
        if not holding.hits and not holding.is_held:
            del node.holdings[slot]
            # Children imply holdings: whoever holds or shared a child did so with its parent.
            while not node.holdings and node.parent is not None:
                parent = node.parent
                assert parent.children is not None
                del parent.children[node.run[:HASH_BYTES]]
                if not parent.children:
                    parent.children = None
                self.blocks -= node.blocks
                self.nodes -= 1
                self._changes += 1
                node = parent

    def _path_to(self, node: PrefixNode) -> list[PrefixNode]:
        path = []
        while node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    # --- holdings ---

    def _use(self, path: list[PrefixNode], slot: int, order: UseOrder, now: float, hits: int) -> None:
        """The worker holds this path as the newest it has, asked for `hits` times more; what no longer fits goes."""
        bit = 1 << slot
        for node in reversed(path):
            holding = node.holdings.get(slot)
            if holding is None:
                holding = node.holdings[slot] = Holding(node)
            if not holding.is_held:
                node.holders |= bit
            holding.hits += hits
            order.use(holding, now)
        if order.blocks > order.capacity_blocks:
            self._fit(slot, order)

    def _drop(self, slot: int, order: UseOrder, holding: Holding) -> None:
        node = holding.node
        order.drop(holding)
        node.holders &= ~(1 << slot)
        self._tidy(node, slot, holding)

    def _drop_below(self, node: PrefixNode, slot: int, order: UseOrder) -> None:
        """Drop a node and all that the worker holds below it, lowest first."""
        below = [node]
        for parent in below:
            below.extend(self._held_children(parent, slot))
        for parent in reversed(below):
            holding = parent.holdings.get(slot)
            if holding is not None and holding.is_held:
                self._drop(slot, order, holding)

    def _held_children(self, node: PrefixNode, slot: int) -> list[PrefixNode]:
        return [child for child in (node.children or {}).values() if child.holders >> slot & 1]

    def _fit(self, slot: int, order: UseOrder) -> None:
        """The worker's own LRU: leaves that it used longest ago go until the rest fits."""
        while order.blocks > order.capacity_blocks and (oldest := order.oldest()) is not None:
            self._drop(slot, order, oldest)

    # --- the window and the bound ---

    def _expire(self, visit: Visit) -> None:
        node = visit.node
        if node is None:
            return
        visit.node = None
        slot = visit.slot
        self._orders[slot].visits -= 1
        while (parent := node.parent) is not None:
            holding = node.holdings[slot]
            holding.hits -= 1
            if not holding.hits:
                self._tidy(node, slot, holding)
            node = parent

    def _bound(self) -> None:
        while self._is_over():
            if self._visits:
                self._expire(self._visits.popleft())
            else:
                oldest = ((order.oldest(), slot) for slot, order in self._orders.items())
                holding, slot = min(
                    ((holding, slot) for holding, slot in oldest if holding is not None),
                    key=lambda candidate: (candidate[0].used, candidate[1]),
                )
                self._drop(slot, self._orders[slot], holding)

    def _is_over(self) -> bool:
        """Whether a bound is passed."""
        most_nodes = self._max_nodes
        return self.blocks > self._max_blocks or self.nodes > most_nodes or len(self._visits) > most_nodes

    def check_invariants(self) -> None:
        """Raise AssertionError where a rule of the module does not hold. Walks the whole tree."""
        assert (self.blocks, self.nodes) == check_tree(self._root, self._visits, self._orders)
        assert not self._is_over()
