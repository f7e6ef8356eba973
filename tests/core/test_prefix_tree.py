"""The prefix tree against a naive model on random sequences, and its rules one by one."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from naive_tree import NaiveTree, Path

from prebled.core.prefix_nodes import Visit
from prebled.core.prefix_tree import PrefixTree

WINDOW_S = 10.0
SLOTS = 3
FAR = 10  # more slots than are counted bit by bit


def chain(path: Path) -> bytes:
    """Chained hashes of a path of small choices: equal prefix, equal hashes."""
    seed, hashes = 7, array("Q")
    for step in path:
        seed = hash((seed, step)) & (2**64 - 1)
        hashes.append(seed)
    return hashes.tobytes()


paths = st.lists(st.integers(0, 2), max_size=8).map(tuple)
slots = st.integers(0, SLOTS - 1)


class TreeMachine(RuleBasedStateMachine):
    """Both trees through the same operations; all that can be read compared after each."""

    @initialize(capacity=st.integers(3, 30))
    def begin(self, capacity: int) -> None:
        self.tree = PrefixTree(max_blocks=10**6, window_s=WINDOW_S)
        self.naive = NaiveTree(WINDOW_S)
        self.now = 0.0
        self.booked: list[tuple[Visit, tuple[float, Path, int], int]] = []
        self.asked: set[Path] = set()
        for slot in range(SLOTS):
            self.tree.set_capacity(slot, capacity)
            self.naive.capacity[slot] = capacity
            self.naive.used[slot] = {}

    @rule(path=paths, slot=slots)
    def book(self, path: Path, slot: int) -> None:
        held = self.naive.held_blocks(path, slot)
        self.now += 0.001  # visits stay distinguishable
        visit = self.tree.book(self.tree.match(chain(path)), slot, self.now)
        mirrored = self.naive.book(path, slot, self.now) if path else (self.now, path, slot)
        self.booked.append((visit, mirrored, held))
        self.asked.add(path)

    @precondition(lambda self: self.booked)
    @rule(index=st.integers(0, 50))
    def withdraw(self, index: int) -> None:
        visit, mirrored, held = self.booked.pop(index % len(self.booked))
        self.tree.withdraw(visit, held)
        self.naive.withdraw(mirrored, held)

    @rule(path=paths, slot=slots)
    def stored(self, path: Path, slot: int) -> None:
        self.tree.stored(chain(path), slot, self.now)
        if path:
            self.naive.stored(path, slot)
        self.asked.add(path)

    @rule(path=paths, slot=slots, keep=st.integers(0, 8))
    def evicted(self, path: Path, slot: int, keep: int) -> None:
        self.tree.evicted(chain(path), slot, keep)
        self.naive.evicted(path, slot, keep)
        self.asked.add(path)

    @rule(slot=slots)
    def forget(self, slot: int) -> None:
        self.tree.forget_worker(slot)
        self.naive.forget_worker(slot)

    @rule(seconds=st.floats(0.1, 2 * WINDOW_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tree.advance(self.now)
        self.naive.advance(self.now)

    @invariant()
    def agrees(self) -> None:
        self.tree.check_invariants()
        known = self.naive.known()
        assert self.tree.blocks == len(known)
        # A run that is gone leaves no end behind.
        self.naive.ends &= known
        for path in self.asked:
            match = self.tree.match(chain(path))
            assert match.blocks == self.naive.known_blocks(path)
            assert match.held_blocks(SLOTS).tolist() == [self.naive.held_blocks(path, slot) for slot in range(SLOTS)]
            if path:
                assert self.tree.hits(chain(path)) == self.naive.hits(path)


TreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestAgainstNaiveModel = TreeMachine.TestCase


def tree_of(capacity: int = 100, max_blocks: int = 10**6, workers: int = 2) -> PrefixTree:
    tree = PrefixTree(max_blocks=max_blocks, window_s=WINDOW_S)
    for slot in range(workers):
        tree.set_capacity(slot, capacity)
    return tree


def book(tree: PrefixTree, path: Path, slot: int = 0, now: float = 0.0) -> Visit:
    return tree.book(tree.match(chain(path)), slot, now)


def held(tree: PrefixTree, path: Path, slot: int = 0) -> int:
    return int(tree.match(chain(path)).held_blocks(slot + 1)[slot])


def test_match_counts_every_worker_at_block_granularity() -> None:
    tree = tree_of(workers=FAR)
    book(tree, (1, 1, 1, 1), slot=0)
    for slot in range(1, FAR - 1):
        book(tree, (1, 1), slot)
    book(tree, (1, 2, 2), slot=FAR - 1)
    assert tree.match(chain((1, 1, 1, 3))).held_blocks(FAR).tolist() == [3, *[2] * (FAR - 2), 1]
    assert tree.match(chain((1, 1, 1, 3))).blocks == 3
    assert tree.match(chain((9,))).held_blocks(FAR).tolist() == [0] * FAR


def test_the_leaf_used_longest_ago_goes_first_and_its_prefix_stays() -> None:
    tree = tree_of(capacity=8)
    book(tree, (0, 0, 0, 0))
    book(tree, (0, 0, 1, 1))
    book(tree, (0, 0, 0, 0))  # now the other branch is the colder one
    book(tree, (2, 2, 2))  # 6 + 3 blocks in 8
    assert (held(tree, (0, 0, 1, 1)), held(tree, (0, 0, 0, 0)), held(tree, (2, 2, 2))) == (2, 4, 3)


def test_a_split_keeps_the_place_of_both_parts_in_the_order_of_every_holder() -> None:
    tree = tree_of(capacity=6)
    book(tree, (0, 0, 0, 0), slot=1, now=1.0)
    book(tree, (1, 1), slot=1, now=2.0)
    book(tree, (0, 0, 5), slot=0, now=3.0)  # splits the run that slot 1 used before (1, 1)
    book(tree, (2, 2, 2, 2), slot=1, now=4.0)  # 4 too many: both parts of the old run, not the newer one
    assert (held(tree, (0, 0, 0, 0), 1), held(tree, (1, 1), 1)) == (0, 2)


def test_nodes_live_while_held_or_asked_for_in_the_window() -> None:
    tree = tree_of(workers=1)
    book(tree, (0, 0), now=0.0)
    book(tree, (1, 1), now=5.0)
    tree.forget_worker(0)
    assert tree.statistics().blocks == 4
    tree.advance(10.0)
    assert (tree.statistics().blocks, tree.hits(chain((1, 1)))) == (2, {0: 1})
    tree.advance(15.0)
    assert (tree.statistics().blocks, tree.statistics().nodes, tree.statistics().visits) == (0, 0, 0)


def test_catching_up_with_the_window_goes_in_small_steps() -> None:
    tree = tree_of()
    for number in range(10):
        book(tree, (number,), now=0.0)
    tree.advance(100.0, limit=4)
    assert tree.statistics().visits == 6
    tree.advance(100.0, limit=4)
    tree.advance(100.0, limit=4)
    assert tree.statistics().visits == 0


def test_a_withdrawn_booking_leaves_what_others_share() -> None:
    tree = tree_of()
    first = book(tree, (0, 0, 1))
    second = book(tree, (0, 0, 2))
    tree.withdraw(first, 0)
    assert (held(tree, (0, 0, 1)), held(tree, (0, 0, 2))) == (2, 3)
    tree.withdraw(second, 0)
    tree.withdraw(second, 0)  # once is enough
    assert tree.statistics().nodes == 0


def test_a_withdrawn_booking_leaves_what_was_held_before() -> None:
    tree = tree_of()
    tree.stored(chain((0, 0)), 0, 0.0)
    visit = book(tree, (0, 0, 1, 1))
    tree.withdraw(visit, 2)
    assert (held(tree, (0, 0, 1, 1)), tree.hits(chain((0,)))) == (2, {})


def test_a_report_of_eviction_wins_over_what_was_expected_below() -> None:
    tree = tree_of()
    book(tree, (0, 0, 0, 1))
    book(tree, (0, 0, 0, 2, 2))
    tree.evicted(chain((0, 0, 0, 1)), 0, 1)
    assert (held(tree, (0, 0, 0, 1)), held(tree, (0, 0, 0, 2, 2))) == (1, 1)
    tree.check_invariants()


def test_past_max_blocks_the_coldest_unheld_go_then_the_coldest() -> None:
    tree = tree_of(max_blocks=32)
    book(tree, (0,) * 10, slot=1, now=1.0)
    book(tree, (1,) * 10, slot=0, now=2.0)
    book(tree, (2,) * 10, slot=1, now=3.0)
    tree.forget_worker(0)  # (1, ...) is known of, but nobody holds it; older ones are held
    book(tree, (3,) * 10, slot=1, now=4.0)
    assert [tree.match(chain((n,) * 10)).blocks for n in range(4)] == [10, 0, 10, 10]
    book(tree, (4,) * 10, slot=0, now=5.0)
    assert [tree.match(chain((n,) * 10)).blocks for n in range(5)] == [0, 0, 10, 10, 10]
    tree.check_invariants()


def test_short_runs_are_bounded_too() -> None:
    tree = tree_of(capacity=10**9, max_blocks=800)
    for number in range(5_000):
        book(tree, (number,), slot=number % 2, now=number * 1e-6)
    assert tree.statistics().nodes <= 100
    assert tree.statistics().visits <= 100
    tree.check_invariants()


def test_a_stale_match_is_made_anew() -> None:
    tree = tree_of()
    match = tree.match(chain((0, 0, 1)))
    book(tree, (0, 0, 2), slot=1)
    tree.book(match, 0, 0.0)
    tree.check_invariants()
    assert tree.match(chain((0, 0, 1))).held_blocks(2).tolist() == [3, 2]


def test_capacity_that_shrinks_is_obeyed_at_once() -> None:
    tree = tree_of()
    book(tree, (0, 0))
    book(tree, (1, 1))
    tree.set_capacity(0, 3)
    assert (held(tree, (0, 0)), held(tree, (1, 1))) == (0, 2)


@pytest.mark.parametrize("shared", range(6))
def test_common_part_of_a_run_is_found_by_halving(shared: int) -> None:
    tree = tree_of()
    book(tree, (0,) * 5)
    assert tree.match(chain((0,) * shared + (1,) * (5 - shared))).blocks == shared
