"""What workers report of their KV caches, applied to the prefix nodes.

Rules it keeps. A report wins over what was expected: a reported holding goes only when its worker says so (or the tree
is out of space), and of a worker that has reported anything nothing else is held but what requests in flight expect. A
removed block that a request in flight has on its path is expected again, since that request is to compute it. Who holds
a block holds all before it, so a report about one that follows an expected block vouches for that.

Nothing is kept per block. A run that is reported ends at the end of a node, which is split for it, so the parents and
the removals reported later are found in the index of nodes. One that is inside of a node after all is searched for in
the runs that the worker holds; such searches are paid from a `credit` that grows with the reports, so that a worker
that talks nonsense costs no more than others.

What makes no sense is counted and left out: a run behind a block that the worker is not known to hold, a removed block
that it has not reported, hashes cut short. A run that was left out, or a removed block that could not be searched for,
means that something was missed: a snapshot is wanted, once in `SNAPSHOT_AGAIN_S`, unless the tree itself has forgotten
what the worker had reported. A removed block that is not held does no harm and asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import msgspec

from prebled.core.blocks import HASH_BYTES
from prebled.core.inner_blocks import find_inner
from prebled.core.matching import common_blocks
from prebled.core.prefix_nodes import PrefixNode, PrefixNodes
from prebled.core.use_order import MOST_CREDIT, Holding, UseOrder
from prebled.messages import KvChange, KvCleared, KvRemoved, KvStored

SNAPSHOT_AGAIN_S = 10.0
"""Seconds between two requests to one worker for a snapshot."""

CREDIT_PER_REPORT = 4096
"""Blocks that each report allows to search through, up to `MOST_CREDIT` or to all that the worker holds."""


class ReportStatistics(msgspec.Struct, frozen=True):
    """Since the start. Blocks that were stored and removed; runs behind a block that is not known; removed blocks that
    are not held; changes that are no run of hashes; snapshots, those asked for, and caches cleared; ends of prefix
    nodes whose hash was taken."""

    stored_blocks: int
    removed_blocks: int
    unknown_parents: int
    unknown_removed: int
    malformed: int
    snapshots: int
    snapshots_wanted: int
    cleared: int
    collisions: int


class Reports:
    """See the module. `bound` forgets what there is no space for; it is called after a run that was one too many."""

    def __init__(self, nodes: PrefixNodes, bound: Callable[[], None]) -> None:
        self._nodes = nodes
        self._bound = bound
        self._stored_blocks = 0
        self._removed_blocks = 0
        self._unknown_parents = 0
        self._unknown_removed = 0
        self._malformed = 0
        self._snapshots = 0
        self._snapshots_wanted = 0
        self._cleared = 0

    def changed(self, order: UseOrder, changes: Sequence[KvChange], now: float) -> bool:
        """Apply changes of one worker's cache. True: ask it for a snapshot."""
        self._begin(order)
        order.credit = min(order.credit + CREDIT_PER_REPORT, max(MOST_CREDIT, order.blocks))
        is_sure = True
        for kind, group in groupby(changes, type):
            if kind is KvStored:
                for change in group:
                    assert isinstance(change, KvStored)
                    is_sure = self._store(order, change.parent, change.hashes) is not None and is_sure
            elif kind is KvRemoved:
                heads = b"".join([self._whole(change.hashes) for change in group if isinstance(change, KvRemoved)])
                is_sure = self._remove(_cut(heads), order) and is_sure
            elif kind is KvCleared:
                self._cleared += 1
                self._keep_only(set(), order)
        self._check_bound()  # removals split nodes too
        return not is_sure and self._wants(order, now)

    def snapshot(self, order: UseOrder, runs: Sequence[KvStored], now: float) -> bool:
        """Replace what a worker has reported. True: ask for another one."""
        self._begin(order)
        self._snapshots += 1
        order.has_forgotten = False
        ends = [self._store(order, run.parent, run.hashes) for run in runs]
        # Followed up only now: later runs may have split what earlier ones stored.
        confirmed: set[Holding] = {order.root}
        for end in ends:
            holding = end or order.root
            while holding not in confirmed:
                confirmed.add(holding)
                holding = holding.parent
        self._keep_only(confirmed, order)
        return None in ends and self._wants(order, now)

    def statistics(self) -> ReportStatistics:
        """See there."""
        return ReportStatistics(
            stored_blocks=self._stored_blocks,
            removed_blocks=self._removed_blocks,
            unknown_parents=self._unknown_parents,
            unknown_removed=self._unknown_removed,
            malformed=self._malformed,
            snapshots=self._snapshots,
            snapshots_wanted=self._snapshots_wanted,
            cleared=self._cleared,
            collisions=self._nodes.collisions,
        )

    def _begin(self, order: UseOrder) -> None:
        """From its first report on, a worker is believed to hold no more than it says and is to compute."""
        if not order.reports:
            order.reports = True
            for holding in order.held():
                holding.stored = 0
                if not holding.below and not holding.flights:
                    self._nodes.drop(holding, order)

    def _check_bound(self) -> None:
        nodes = self._nodes
        if nodes.blocks > nodes.max_blocks or nodes.nodes > nodes.max_nodes:
            self._bound()

    def _wants(self, order: UseOrder, now: float) -> bool:
        if order.has_forgotten or now - order.asked_at < SNAPSHOT_AGAIN_S:
            return False
        order.asked_at = now
        self._snapshots_wanted += 1
        return True

    # --- stored ---

    def _store(self, order: UseOrder, parent: bytes, hashes: bytes) -> Holding | None:
        """The holding of the end of this run, reported now. None: it was left out."""
        if len(hashes) & 7 or not hashes or (parent and len(parent) != HASH_BYTES):
            self._malformed += 1
            return None
        nodes = self._nodes
        number = nodes.uses = nodes.uses + 1
        if parent:
            node = nodes.index.get(parent)
            if node is None or not node.holders & order.bit or not node.run.endswith(parent):
                node = self._cut_after(parent, order)
                if node is None:
                    self._unknown_parents += 1
                    return None
            above = node.holdings[order.slot]
            if not above.stored:
                self._vouch(above, number)
        else:
            node, above = nodes.root, order.root
        start = 0
        while start < len(hashes):
            children = node.children
            child = children.get(hashes[start : start + HASH_BYTES]) if children is not None else None
            if child is None:
                above = nodes.grow(node, hashes[start:] if start else hashes, order, above)
                self._confirm(above, number)
                break
            if not hashes.startswith(child.run, start):
                rest = hashes[start : start + len(child.run)]
                child = nodes.split(child, common_blocks(child.run, rest))
            holding = child.holdings.get(order.slot)
            if holding is None or not holding.is_held:
                holding = nodes.hold(child, order, above)
            if not holding.stored:
                self._confirm(holding, number)
            above = holding
            start += len(child.run)
            node = child
        order.touch(above, number)
        self._check_bound()
        return above

    def _confirm(self, holding: Holding, number: int) -> None:
        holding.stored = number
        node = holding.node
        if not node.is_indexed:
            self._nodes.list_in_index(node)
        self._stored_blocks += len(node.run) >> 3

    def _vouch(self, holding: Holding, number: int) -> None:
        """The worker has stored a block after this, so it has stored this and all before it."""
        while not holding.stored:
            self._confirm(holding, number)
            holding = holding.parent

    def _cut_after(self, block: bytes, order: UseOrder) -> PrefixNode | None:
        """The node that ends with this block, which the worker holds inside of one, or that nobody has reported."""
        node = self._nodes.index.get(block)
        if node is not None and node.holders & order.bit:
            return self._nodes.split(node, 1)
        for inner, index in self._search([block], order) or ():
            is_last = index + 1 == inner.blocks
            return inner if is_last else self._nodes.split(inner, index + 1)
        return None

    # --- removed ---

    def _remove(self, heads: list[bytes], order: UseOrder) -> bool:
        """Drop these blocks and all below them. False: one may be held and was not found."""
        nodes, slot, bit = self._nodes, order.slot, order.bit
        index = nodes.index
        number = nodes.uses = nodes.uses + 1
        missing = [head for head in heads if (node := index.get(head)) is None or node.first != head]
        is_sure = not missing or self._cut_before(missing, order)
        for head in heads:
            node = index.get(head)
            if node is None or node.first != head or not node.holders & bit or not node.holdings[slot].stored:
                self._unknown_removed += 1
                continue
            top = node.holdings[slot]
            if top.below or top.flights:
                for holding in reversed(nodes.below(top, order)):
                    self._unreport(holding, order, number)
            else:
                top.removed = number
                self._removed_blocks += len(node.run) >> 3
                nodes.drop(top, order)
        return is_sure

    def _whole(self, hashes: bytes) -> bytes:
        if len(hashes) & 7:
            self._malformed += 1
            return b""
        return hashes

    def _unreport(self, holding: Holding, order: UseOrder, number: int) -> None:
        """It is not in the cache. Those below it have been unreported before, so what is left below is expected."""
        if holding.stored:
            holding.stored = 0
            holding.removed = number
            self._removed_blocks += len(holding.node.run) >> 3
        if not holding.below and not holding.flights:
            self._nodes.drop(holding, order)

    def _keep_only(self, confirmed: set[Holding], order: UseOrder) -> None:
        """Nothing that was reported is in the cache but this."""
        number = self._nodes.uses = self._nodes.uses + 1
        for holding in order.held():
            if holding not in confirmed:
                self._unreport(holding, order, number)

    def _cut_before(self, blocks: Iterable[bytes], order: UseOrder) -> bool:
        """Split the nodes that have these blocks inside. False: they were not searched for."""
        nodes = self._nodes
        unseen = []
        for block in blocks:
            node = nodes.index.get(block)
            if node is None or not node.holders & order.bit:
                unseen.append(block)
            elif node.first != block:  # its last one
                nodes.split(node, node.blocks - 1)
        found = self._search(unseen, order) if unseen else []
        cut, before = None, 0
        for inner, index in found or ():
            if inner is not cut:
                cut, before = inner, 0
            if index > before:
                nodes.split(inner, index - before)  # the node itself is the lower part from now on
            before = index
        return found is not None

    def _search(self, blocks: list[bytes], order: UseOrder) -> list[tuple[PrefixNode, int]] | None:
        """Where these blocks are inside of the worker's nodes. None: there is no credit for it."""
        if order.credit < order.blocks:
            return None
        order.credit -= order.blocks
        return find_inner(order, blocks)


def _cut(hashes: bytes) -> list[bytes]:
    return [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
