"""The global prefix tree: which prefixes were asked for, who holds them, and how often they were shared lately.

A path-compressed radix tree over chained block hashes (Preble, section 3.2). A prefix node is a run of blocks that
occur only together; the run is one string of 8-byte hashes. A worker holds a node whole or not at all: where a worker
holds, evicts or asks for part of one, the node is split there.

What a worker holds is known from two sources. A request that is placed makes its whole path *expected* there, since
what is in flight is as good as cached. A worker that reports (`core.reported`) says what its cache has, and its word
wins: what it *stored* stays until it says otherwise, and what was expected and is not stored by the time the request
has ended is taken back, unless another in flight expects it. A worker that does not report is taken to have stored what
its requests computed, and to let its least recently used leaves go when its capacity is passed.

Rules it keeps besides those of `core.prefix_nodes`: at most `max_blocks` blocks, in at most an eighth as many nodes
(short runs cost more memory per block). Near either bound the history is shortened, oldest first, which drops the
coldest nodes that nobody holds; past it then go the coldest holdings of workers that do not report, and only then
those of workers that do. What was reported and is forgotten so makes for worse placements, never for an error: later
reports about it are counted as unknown, and no snapshot is asked for, which would not fit either. `check_invariants`
states all of it. The tree does not know tokens, requests or costs; workers are small numbers (slots), and time is
passed in, never going back.

Two prefixes with an equal 64-bit hash would be taken for one: with n blocks in the tree a chance of n^2 / 2^65 in all,
and the harm is one placement that finds less cached than it was promised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from prebled.core.blocks import HASH_BYTES
from prebled.core.matching import Match, common_blocks
from prebled.core.prefix_nodes import PrefixNode, PrefixNodes, Visit
from prebled.core.reported import Reports, ReportStatistics
from prebled.core.tree_check import check_tree
from prebled.core.use_order import Holding, UseOrder
from prebled.messages import KvChange, KvStored

BLOCKS_PER_NODE = 8
"""At the bound, nodes hold at least this many blocks on average: a node costs as much memory as about 80 blocks."""


class TreeStatistics(msgspec.Struct, frozen=True):
    """Sizes of the tree. `visits`: requests in the history window; `held_blocks`: per slot."""

    blocks: int
    nodes: int
    visits: int
    held_blocks: dict[int, int]


class PrefixTree:
    """See the module. Paths are given as bytes: the 8-byte hashes of all blocks from the first one on."""

    def __init__(self, *, max_blocks: int, window_s: float) -> None:
        self._window_s = window_s
        self._nodes = PrefixNodes(max_blocks, max(max_blocks // BLOCKS_PER_NODE, 1))
        self._orders = self._nodes.orders
        self._reports = Reports(self._nodes, self._bound)
        self._visits: deque[Visit] = deque()
        self._newest_blocks = 0  # that the newest booking added

    # --- workers ---

    def set_capacity(self, slot: int, capacity_blocks: int) -> None:
        """A worker that can hold so many blocks; new, or known with another size."""
        order = self._orders.get(slot)
        if order is None:
            self._orders[slot] = UseOrder(slot, self._nodes.root, capacity_blocks)
        else:
            order.capacity_blocks = capacity_blocks
            self._fit(order)

    def forget_worker(self, slot: int) -> None:
        """It holds nothing any more and has reported nothing. Its visits stay until they leave the window."""
        order = self._orders.get(slot)
        if order is not None:
            order.reports = order.has_forgotten = False
            order.asked_at = float("-inf")
            for holding in order.held():
                self._nodes.drop(holding, order)

    def use_order(self, slot: int) -> UseOrder:
        """What the worker holds. Not to be changed."""
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
        tree = self._nodes
        node, child = tree.root, tree.root.only
        start = holders = common = 0
        while True:
            if child is None and node.children is not None:
                child = node.children.get(hashes[start : start + HASH_BYTES])
            if child is None:
                break
            run = child.run
            is_whole = hashes.startswith(run, start)
            if not is_whole and not (common := common_blocks(run, hashes[start : start + len(run)])):
                child = None
                break
            if child.holders != holders:
                if holders:
                    levels.append((start >> 3, holders))
                holders = child.holders
            if not is_whole:
                break
            nodes.append(child)
            start += len(run)
            node, child = child, child.only
        blocks = (start >> 3) + common
        if holders:
            levels.append((blocks, holders))
        return Match(hashes, nodes, levels, blocks, child, common, tree.changes)

    def hits(self, hashes: bytes) -> dict[int, int]:
        """Per slot: requests of the window whose path had all of these blocks. Walks all that is below them."""
        match = self.match(hashes)
        if match.blocks * HASH_BYTES < len(hashes):
            return {}
        node = match.partial or (match.nodes[-1] if match.nodes else self._nodes.root)
        found = {slot: node.shared(slot, self._nodes.nodes + 1) for slot in self._orders}
        return {slot: hits for slot, hits in found.items() if hits}

    def held_hashes(self, slot: int) -> frozenset[bytes]:
        """All blocks that the worker holds, reported or expected. Walks all of them."""
        runs = [holding.node.run for holding in self._orders[slot].held()]
        return frozenset(run[at : at + HASH_BYTES] for run in runs for at in range(0, len(run), HASH_BYTES))

    def statistics(self) -> TreeStatistics:
        """Sizes, for people and for tests."""
        held = {slot: order.blocks for slot, order in self._orders.items()}
        return TreeStatistics(self._nodes.blocks, self._nodes.nodes, len(self._visits), held)

    def report_statistics(self) -> ReportStatistics:
        """What came of the workers' reports."""
        return self._reports.statistics()

    # --- requests ---

    def book(self, match: Match, slot: int, now: float) -> Visit:
        """A request with this path was placed there: it counts in the window, and the worker is expected to hold the
        path, as the newest it has. `match` is that of the path; a stale one is matched again."""
        nodes, order, hashes = self._nodes, self._orders[slot], match.hashes
        number = nodes.uses = nodes.uses + 1
        if not hashes:
            return Visit(None, None, slot, number, now, is_counted=False)
        if match.changes != nodes.changes:
            match = self.match(hashes)
        path, end, bit = match.nodes, match.blocks * HASH_BYTES, order.bit
        if match.partial is not None:
            path = [*path, nodes.split(match.partial, match.partial_blocks)]
        held = len(path)
        while held and not path[held - 1].holders & bit:
            held -= 1
        found = holding = path[held - 1].holdings[slot] if held else order.root
        for node in path[held:]:
            holding = nodes.hold(node, order, holding)
        if end < len(hashes):
            self._newest_blocks = (len(hashes) - end) >> 3
            parent = path[-1] if path else nodes.root
            holding = nodes.grow(parent, hashes[end:] if end else hashes, order, holding)
        order.touch(holding, number)
        holding.flights += 1
        holding.visits += 1
        order.visits += 1
        visit = Visit(holding, found, slot, number, now)
        self._visits.append(visit)
        if order.blocks > order.capacity_blocks:
            self._fit(order)
        most_nodes = nodes.max_nodes
        if nodes.blocks > nodes.max_blocks or nodes.nodes > most_nodes or len(self._visits) > most_nodes:
            self._bound()
        return visit

    def release(self, visit: Visit) -> None:
        """The request has ended, its prompt computed. A worker that reports has told of it by now: what it has not
        stored is no longer expected, unless others in flight are to compute it."""
        self._make_room()
        holding = self._land(visit)
        if holding is not None and not holding.stored:
            order = self._orders[visit.slot]
            if order.reports:
                self._take_back(holding, order)
            else:
                number = self._nodes.uses = self._nodes.uses + 1
                while not holding.stored:
                    holding.stored = number
                    holding = holding.parent

    def withdraw(self, visit: Visit) -> None:
        """The request has ended without its prompt being computed: its booking is taken back, and what it alone was to
        compute is no longer expected."""
        if visit.found is not None:
            self._expire(visit)
        holding = self._land(visit)
        if holding is not None:
            self._take_back(holding, self._orders[visit.slot])

    def advance(self, now: float, limit: int | None = None) -> None:
        """Let requests older than the window leave it; at most `limit` of them, so that a long pause is caught up with
        in small steps."""
        horizon = now - self._window_s
        visits = self._visits
        while visits and visits[0].time <= horizon and limit != 0:
            self._expire(visits.popleft())
            limit = limit - 1 if limit is not None else None

    # --- reports ---

    def report(self, slot: int, changes: Sequence[KvChange], now: float) -> bool:
        """The worker says how its cache has changed, in this order. True: it should be asked for a snapshot."""
        return self._reports.changed(self._orders[slot], changes, now)

    def replace(self, slot: int, runs: Sequence[KvStored], now: float) -> bool:
        """The worker says all that its cache has, parents before children; expected there is, besides, only what is in
        flight. True: another snapshot should be asked for."""
        return self._reports.snapshot(self._orders[slot], runs, now)

    # --- inside ---

    def _land(self, visit: Visit) -> Holding | None:
        """It is no longer in flight. None: it was not any more, or its holding is over."""
        holding = visit.holding
        if visit.found is None or holding is None:
            return None
        visit.found = None
        if not holding.is_held:
            return None
        holding.flights -= 1
        return holding

    def _forget(self, leaf: Holding, order: UseOrder) -> None:
        """Drop this, and what is before it if only a request that ends here was to compute it."""
        self._nodes.drop(leaf, order)
        if not leaf.parent.stored:
            self._take_back(leaf.parent, order)

    def _take_back(self, holding: Holding, order: UseOrder) -> None:
        """Drop this and what is before it, as far as it is not stored and nobody in flight is to compute it."""
        while not (holding.stored or holding.flights or holding.below):
            above = holding.parent
            self._nodes.drop(holding, order)
            holding = above

    def _fit(self, order: UseOrder) -> None:
        """The LRU of a worker that does not report: leaves that it used longest ago go until the rest fits."""
        if not order.reports:
            while order.blocks > order.capacity_blocks and (oldest := order.oldest()) is not None:
                self._forget(oldest, order)

    def _expire(self, visit: Visit) -> None:
        if visit.is_counted:
            visit.is_counted = False
            assert visit.holding is not None
            slot, node = visit.slot, visit.holding.node
            self._orders[slot].visits -= 1
            holding = node.holdings[slot]  # of later requests, if that of the visit is over
            holding.visits -= 1
            if not holding.visits and not holding.is_held:
                self._nodes.tidy(node, slot)

    def _make_room(self) -> None:
        """Shorten the history for one more request like the newest, so that its decision does not wait for that."""
        nodes, visits = self._nodes, self._visits
        for _ in range(2):
            is_short = nodes.blocks + self._newest_blocks > nodes.max_blocks or nodes.nodes + 2 > nodes.max_nodes
            if not visits or not (is_short or len(visits) >= nodes.max_nodes):
                return
            self._expire(visits.popleft())

    def _bound(self) -> None:
        while self._is_over():
            if self._visits:
                self._expire(self._visits.popleft())
            else:
                oldest = ((order.oldest(), order) for order in self._orders.values())
                holding, order = min(
                    ((holding, order) for holding, order in oldest if holding is not None),
                    key=lambda candidate: (candidate[1].reports, candidate[0].used),
                )
                order.has_forgotten = order.has_forgotten or bool(holding.stored and order.reports)
                self._forget(holding, order)

    def _is_over(self) -> bool:
        """Whether a bound is passed."""
        nodes, most_nodes = self._nodes, self._nodes.max_nodes
        return nodes.blocks > nodes.max_blocks or nodes.nodes > most_nodes or len(self._visits) > most_nodes

    def check_invariants(self) -> None:
        """Raise AssertionError where a rule of the module does not hold. Walks the whole tree."""
        check_tree(self._nodes, self._visits)
        assert not self._is_over()
