"""The rules of the prefix tree, checked one by one on the whole of it. For tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prebled.core.blocks import HASH_BYTES
from prebled.core.prefix_nodes import PrefixNode, PrefixNodes, Visit
from prebled.core.use_order import OFF, Holding, UseOrder


def check_tree(tree: PrefixNodes, visits: Iterable[Visit]) -> None:
    """Raise AssertionError where a rule of `prefix_nodes`, `use_order` or `reported` does not hold."""
    ends = Counter(
        (visit.holding.node, visit.slot) for visit in visits if visit.is_counted and visit.holding is not None
    )
    nodes = [tree.root]
    held: dict[int, set[Holding]] = {slot: set() for slot in tree.orders}
    for node in nodes:
        nodes.extend((node.children or {}).values())
        if node is not tree.root:
            _check_node(node, ends, held)
    del nodes[0]
    assert tree.nodes == len(nodes)
    assert tree.blocks == sum(node.blocks for node in nodes)
    _check_index(tree, nodes)
    for slot, order in tree.orders.items():
        _check_order(order, held[slot])
        assert order.visits == sum(count for (_, where), count in ends.items() if where == slot)


def _check_node(node: PrefixNode, ends: Counter[tuple[PrefixNode, int]], held: dict[int, set[Holding]]) -> None:
    parent = node.parent
    assert parent is not None
    assert parent.children is not None
    assert parent.children[node.first] is node
    assert node.run[:HASH_BYTES] == node.first
    assert len(node.run) == node.blocks * HASH_BYTES > 0
    assert node.end == parent.end + node.blocks
    assert node.children is None or node.children
    children = list((node.children or {}).values())
    assert node.only is (children[0] if len(children) == 1 else None)
    assert node.holdings or len(children) > 1, "a node without a reason to live"
    assert node.holders == sum(1 << slot for slot, holding in node.holdings.items() if holding.is_held)
    assert parent.parent is None or node.holders & ~parent.holders == 0, "held without what is before it"
    for slot, holding in node.holdings.items():
        assert holding.node is node
        assert holding.is_held or holding.visits
        assert holding.visits == ends[node, slot]
        if holding.is_held:
            held[slot].add(holding)
            assert parent.parent is None or holding.parent is parent.holdings[slot]
            assert not holding.stored or holding.parent.stored


def _check_order(order: UseOrder, held: set[Holding]) -> None:
    listed = order.listed()
    assert len(set(listed)) == len(listed)
    assert set(listed) <= held
    assert {holding for holding in held if not holding.below} <= set(listed), "a leaf that would never go"
    assert all((holding.newer is OFF) == (holding not in set(listed)) for holding in held)
    uses = [holding.used for holding in listed]
    assert uses == sorted(uses)
    below = Counter(holding.parent for holding in held)
    assert all(holding.below == below[holding] for holding in held)
    assert order.root.below == below[order.root] + 1
    assert order.blocks == sum(holding.node.blocks for holding in held)
    assert len(order.held()) == len(held) == len(set(order.held()))
    assert len(list(order.victims())) == len(held)
    assert all(holding.stored or holding.flights or holding.below for holding in held), "expected of nobody"
    if order.reports:
        assert all(holding.node.is_indexed for holding in held if holding.stored)
    else:
        assert order.blocks <= order.capacity_blocks


def _check_index(tree: PrefixNodes, nodes: list[PrefixNode]) -> None:
    ends = [(end, node) for node in nodes if node.is_indexed for end in {node.first, node.run[-HASH_BYTES:]}]
    known = set(ends)
    assert all((end, node) in known for end, node in tree.index.items())
    assert tree.collisions or len(tree.index) == len(ends)
