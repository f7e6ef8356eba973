"""The prefix tree against a naive model on random sequences of bookings and reports."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from naive_tree import NaiveTree, NaiveVisit, Path
from tree_paths import WINDOW_S, block, chain, removed, stored

from prebled.core.blocks import HASH_BYTES
from prebled.core.prefix_nodes import Visit
from prebled.core.prefix_tree import PrefixTree
from prebled.messages import KvCleared, KvRemoved, KvStored

SLOTS = 3

paths = st.lists(st.integers(0, 2), max_size=8).map(tuple)
some_paths = st.lists(paths.filter(bool), max_size=4)
slots = st.integers(0, SLOTS - 1)
reporting = st.integers(1, SLOTS - 1)  # the worker of slot 0 never reports
cuts = st.integers(0, 8)


class TreeMachine(RuleBasedStateMachine):
    """Both trees through the same operations; all that can be read compared after each."""

    @initialize(capacity=st.integers(3, 30))
    def begin(self, capacity: int) -> None:
        self.tree = PrefixTree(max_blocks=10**6, window_s=WINDOW_S)
        self.naive = NaiveTree(WINDOW_S)
        self.now = 0.0
        self.booked: list[tuple[Visit, NaiveVisit]] = []
        self.asked: set[Path] = set()
        for slot in range(SLOTS):
            self.tree.set_capacity(slot, capacity)
            self.naive.capacity[slot] = capacity
            self.naive.add_worker(slot)

    @rule(path=paths, slot=slots)
    def book(self, path: Path, slot: int) -> None:
        self.now += 0.001
        visit = self.tree.book(self.tree.match(chain(path)), slot, self.now)
        self.booked.append((visit, self.naive.book(path, slot, self.now)))
        self.asked.add(path)

    @precondition(lambda self: self.booked)
    @rule(index=st.integers(0, 50), is_computed=st.booleans())
    def end(self, index: int, is_computed: bool) -> None:
        visit, mirrored = self.booked.pop(index % len(self.booked))
        if is_computed:
            self.tree.release(visit)
            self.naive.release(mirrored)
        else:
            self.tree.withdraw(visit)
            self.naive.withdraw(mirrored)

    @rule(path=paths.filter(bool), slot=reporting, cut=cuts)
    def store(self, path: Path, slot: int, cut: int) -> None:
        """The rest of a path behind one of its blocks, held or not."""
        cut = min(cut, len(path) - 1)
        self.naive.begin(slot)
        self.tree.report(slot, [stored(path[:cut], path[cut:])], self.now)
        self.naive.stored(slot, path[:cut], path[cut:])
        self.asked.add(path)

    @precondition(lambda self: self.booked)
    @rule(index=st.integers(0, 50), blocks=st.integers(1, 8), cut=cuts)
    def compute(self, index: int, blocks: int, cut: int) -> None:
        """The worker stores the beginning of what was booked there."""
        mirrored = self.booked[index % len(self.booked)][1]
        path = mirrored.path[:blocks]
        if mirrored.slot and path:
            self.store(path, mirrored.slot, min(cut, self.naive.held_blocks(path, mirrored.slot)))

    @rule(some=some_paths, slot=reporting)
    def remove(self, some: list[Path], slot: int) -> None:
        self.naive.begin(slot)
        self.tree.report(slot, [removed(*some[:1]), removed(*some[1:])], self.now)
        self.naive.removed(slot, some)

    @rule(slot=reporting)
    def clear(self, slot: int) -> None:
        self.naive.begin(slot)
        self.tree.report(slot, [KvCleared()], self.now)
        self.naive.reported[slot] = set()

    @rule(some=some_paths, slot=reporting, cut=cuts)
    def take_snapshot(self, some: list[Path], slot: int, cut: int) -> None:
        """Paths of a cache, cut anywhere: what comes before the cut may have been there, be in the snapshot, or not."""
        runs = [(path[: min(cut, len(path) - 1)], path[min(cut, len(path) - 1) :]) for path in some]
        self.naive.begin(slot)
        self.tree.replace(slot, [stored(parent, run) for parent, run in runs], self.now)
        self.naive.snapshot(slot, runs)
        self.asked.update(some)

    @rule(slot=slots)
    def forget(self, slot: int) -> None:
        self.tree.forget_worker(slot)
        self.naive.forget_worker(slot)

    @rule(seconds=st.floats(0.1, 2 * WINDOW_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tree.advance(self.now)
        self.naive.advance(self.now)

    @rule()
    def idle(self) -> None:
        """All requests end: a worker that reports holds what it reported, block by block."""
        for visit, mirrored in self.booked:
            self.tree.release(visit)
            self.naive.release(mirrored)
        self.booked.clear()
        for slot, reported in self.naive.reported.items():
            assert self.tree.held_hashes(slot) == {block(path) for path in reported}

    @invariant()
    def agrees(self) -> None:
        self.tree.check_invariants()
        known = self.naive.known()
        assert self.tree.statistics().blocks == len(known)
        # A run that is gone leaves no end behind.
        self.naive.ends &= known
        for slot in range(SLOTS):
            assert self.tree.held_hashes(slot) == {block(path) for path in self.naive.held(slot)}
        for path in self.asked:
            match = self.tree.match(chain(path))
            assert match.blocks == self.naive.known_blocks(path)
            assert match.held_blocks(SLOTS).tolist() == [self.naive.held_blocks(path, slot) for slot in range(SLOTS)]
            if path:
                assert self.tree.hits(chain(path)) == self.naive.hits(path)


TreeMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestAgainstNaiveModel = TreeMachine.TestCase


names = st.lists(st.integers(1, 6), max_size=6).map(lambda hashes: array("Q", hashes).tobytes())
parents = st.one_of(st.just(b""), names.map(lambda path: path[-HASH_BYTES:]))
changes = st.one_of(
    st.builds(KvStored, parents, names), st.builds(KvRemoved, names), st.just(KvCleared()), st.just(KvStored(b"?", b""))
)
operations = st.one_of(
    st.tuples(st.just("book"), slots, names),
    st.tuples(st.just("end"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("report"), slots, st.lists(changes, max_size=4)),
    st.tuples(st.just("replace"), slots, st.lists(st.builds(KvStored, parents, names), max_size=4)),
    st.tuples(st.just("forget"), slots, st.none()),
    st.tuples(st.just("wait"), st.integers(1, 20), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(operations, max_size=60), st.sampled_from([8, 24, 10**6]))
def test_any_hashes_and_any_bound_keep_the_rules(script: list[tuple[str, int, Any]], max_blocks: int) -> None:
    """Hashes that are no chains, so that nodes share them everywhere, and hardly any space: nothing raises."""
    tree = PrefixTree(max_blocks=max_blocks, window_s=WINDOW_S)
    for slot in range(SLOTS):
        tree.set_capacity(slot, 10)
    booked: list[Visit] = []
    now = 0.0
    for operation, number, what in script:
        if operation == "book":
            booked.append(tree.book(tree.match(what), number, now))
        elif operation == "end" and booked:
            visit = booked.pop(number % len(booked))
            (tree.release if what else tree.withdraw)(visit)
        elif operation == "report":
            tree.report(number, what, now)
        elif operation == "replace":
            tree.replace(number, what, now)
        elif operation == "forget":
            tree.forget_worker(number)
        elif operation == "wait":
            now += number
            tree.advance(now)
        tree.check_invariants()
