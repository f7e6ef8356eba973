"""What the prefix tree is made of: nodes, and the visits that keep them alive.

Plain values; the rules that bind them are `PrefixTree`'s, and `check_tree` states them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prebled.core.blocks import HASH_BYTES
from prebled.core.use_order import Holding, UseOrder


class PrefixNode:
    """A run of blocks. `holders`: bit per slot of the workers that hold it; `holdings`: the same workers and those with
    hits in the history window."""

    __slots__ = ("children", "holders", "holdings", "parent", "run")

    def __init__(self, run: bytes, parent: PrefixNode | None) -> None:
        self.run = run
        self.parent = parent
        self.children: dict[bytes, PrefixNode] | None = None
        self.holders = 0
        self.holdings: dict[int, Holding] = {}

    @property
    def blocks(self) -> int:
        """Length of the run."""
        return len(self.run) // HASH_BYTES


class Visit:
    """One request in the history window: when, on which worker, and the node where its path ends. `node` None: it was
    taken back."""

    __slots__ = ("node", "slot", "time")

    def __init__(self, node: PrefixNode | None, slot: int, time: float) -> None:
        self.node = node
        self.slot = slot
        self.time = time


def check_tree(root: PrefixNode, visits: Iterable[Visit], orders: Mapping[int, UseOrder]) -> tuple[int, int]:
    """Raise AssertionError where a rule of `PrefixTree` does not hold; its blocks and its nodes. Walks all of it."""
    blocks = nodes = 0
    held: dict[int, set[int]] = {slot: set() for slot in orders}
    ends: dict[tuple[int, int], int] = {}
    for visit in visits:
        if visit.node is not None:
            key = (id(visit.node), visit.slot)
            ends[key] = ends.get(key, 0) + 1
    queue = [root]
    for node in queue:
        queue.extend((node.children or {}).values())
        if node is not root:
            blocks += node.blocks
            nodes += 1
            _check_node(node, root, ends, held)
    for slot, order in orders.items():
        order_held = order.held()
        assert {id(holding.node) for holding in order_held} == held[slot]
        assert len(order_held) == len(held[slot])
        assert order.blocks == sum(holding.node.blocks for holding in order_held) <= order.capacity_blocks
        assert order.visits == sum(count for (_, where), count in ends.items() if where == slot)
        times = [holding.used for holding in order_held]
        assert times == sorted(times)
    return blocks, nodes


def _check_node(
    node: PrefixNode, root: PrefixNode, ends: dict[tuple[int, int], int], held: dict[int, set[int]]
) -> None:
    parent = node.parent
    assert parent is not None
    assert parent.children is not None
    assert parent.children[node.run[:HASH_BYTES]] is node
    assert node.run
    assert node.children is None or node.children
    assert node.holdings, "a node that nobody holds or shared in the window"
    assert node.holders == sum(1 << slot for slot, holding in node.holdings.items() if holding.is_held)
    assert parent is root or node.holders & ~parent.holders == 0, "held without what is before it"
    for slot, holding in node.holdings.items():
        assert holding.node is node
        assert holding.is_held or holding.hits
        below = sum(child.holdings[slot].hits for child in (node.children or {}).values() if slot in child.holdings)
        assert holding.hits == ends.get((id(node), slot), 0) + below
        if holding.is_held:
            held[slot].add(id(node))
