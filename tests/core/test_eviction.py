"""M by hand: 1 ms a token, blocks of 64."""

from __future__ import annotations

import pytest
from sights import BLOCK, COST, path, tree

from prebled.core.eviction import MOST_VICTIMS, eviction_s
from prebled.core.prefix_tree import PrefixTree
from prebled.messages import KvStored


def book(made: PrefixTree, hashes: bytes, now: float) -> None:
    made.book(made.match(hashes), 0, now)


def test_victims_are_the_least_recently_used_times_their_share_of_requests() -> None:
    made = tree(1, capacity_blocks=30)
    for now, name in enumerate([1, 2, 2, 3]):
        book(made, path(name, 10), float(now))
    order = made.use_order(0)
    assert eviction_s(order, 0, BLOCK, COST) == 0
    assert eviction_s(order, 5, BLOCK, COST) == pytest.approx(0.320 / 4)  # part of the first, asked for once in four
    assert eviction_s(order, 10, BLOCK, COST) == pytest.approx(0.640 / 4)
    assert eviction_s(order, 15, BLOCK, COST) == pytest.approx(0.640 / 4 + 0.320 * 2 / 4)
    assert eviction_s(order, 99, BLOCK, COST) == pytest.approx(0.640)  # everything


def test_free_space_costs_nothing() -> None:
    made = tree(1, capacity_blocks=30)
    book(made, path(1, 10), 0.0)
    assert eviction_s(made.use_order(0), 20, BLOCK, COST) == 0
    assert eviction_s(made.use_order(0), 21, BLOCK, COST) == pytest.approx(0.064)


def test_what_nobody_asked_for_within_the_window_costs_nothing() -> None:
    made = tree(1, capacity_blocks=10)
    made.report(0, [KvStored(b"", path(1, 10))], 0.0)
    assert eviction_s(made.use_order(0), 10, BLOCK, COST) == 0


def test_so_many_victims_are_looked_at() -> None:
    made = tree(1, capacity_blocks=100)
    for name in range(100):
        book(made, path(name, 1), float(name))
    assert eviction_s(made.use_order(0), 100, BLOCK, COST) == pytest.approx(MOST_VICTIMS * 0.064 / 100)
