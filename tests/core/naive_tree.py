"""The prefix tree as its documentation says it, block by block and without any care for speed.

A block is named by its whole path. `ends` are the paths at which a run ends: where a request or a report ended,
branched off, or was cut. Uses are numbered; within a path the first block is used last, so leaves are the oldest."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

Path = tuple[int, ...]


def prefixes(path: Path) -> set[Path]:
    return {path[:depth] for depth in range(1, len(path) + 1)}


@dataclasses.dataclass(eq=False)
class NaiveVisit:
    """`is_expected`: what it is to compute has not been forgotten."""

    time: float
    path: Path
    slot: int
    is_expected: bool = True


class NaiveTree:
    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.capacity: dict[int, int] = {}
        self.used: dict[int, dict[Path, tuple[int, int]]] = {}  # slot -> block -> (number of the use, -depth)
        self.computed: dict[int, set[Path]] = {}  # those that a request has ended for, of slots that do not report
        self.reported: dict[int, set[Path]] = {}  # of slots that report
        self.visits: list[NaiveVisit] = []
        self.flights: list[NaiveVisit] = []
        self.ends: set[Path] = set()
        self.uses = 0

    def add_worker(self, slot: int) -> None:
        """One that holds nothing."""
        self.used[slot] = {}
        self.computed[slot] = set()

    # --- reading ---

    def held(self, slot: int) -> set[Path]:
        if slot not in self.reported:
            return set(self.used[slot])
        expected = [visit.path for visit in self.flights if visit.slot == slot and visit.is_expected]
        return self.reported[slot].union(*map(prefixes, expected))

    def known(self) -> set[Path]:
        return set().union(*map(self.held, self.used), *(prefixes(visit.path) for visit in self.visits))

    def held_blocks(self, path: Path, slot: int) -> int:
        return len(prefixes(path) & self.held(slot))

    def known_blocks(self, path: Path) -> int:
        return len(prefixes(path) & self.known())

    def hits(self, path: Path) -> dict[int, int]:
        return dict(Counter(visit.slot for visit in self.visits if visit.path[: len(path)] == path))

    # --- requests ---

    def book(self, path: Path, slot: int, now: float) -> NaiveVisit:
        visit = NaiveVisit(now, path, slot)
        if not path:
            return visit
        self._cut(path)
        self.flights.append(visit)
        self.visits.append(visit)
        if slot not in self.reported:
            self.uses += 1
            for block in prefixes(path):
                self.used[slot][block] = (self.uses, -len(block))
            self._fit(slot)
        return visit

    def release(self, visit: NaiveVisit) -> None:
        if visit in self.flights:
            self.flights.remove(visit)
            if visit.slot not in self.reported and visit.is_expected:
                self.computed[visit.slot] |= prefixes(visit.path)

    def withdraw(self, visit: NaiveVisit) -> None:
        if visit not in self.flights:
            return
        self.flights.remove(visit)
        if visit in self.visits:
            self.visits.remove(visit)
        if visit.slot in self.reported or not visit.is_expected:
            return
        self._take_back(visit.path, visit.slot)

    def advance(self, now: float) -> None:
        self.visits = [visit for visit in self.visits if visit.time > now - self.window_s]

    def forget_worker(self, slot: int) -> None:
        self.reported.pop(slot, None)
        self.add_worker(slot)
        self._forget_flights(slot)

    # --- reports ---

    def begin(self, slot: int) -> None:
        """Its first report."""
        if slot not in self.reported:
            self.reported[slot] = set()
            self.add_worker(slot)

    def stored(self, slot: int, parent: Path, run: Path) -> None:
        if parent and parent not in self.held(slot):
            return
        path = parent + run
        self.ends.add(parent)
        self._cut(path)
        self.reported[slot] |= prefixes(path)

    def removed(self, slot: int, blocks: Iterable[Path]) -> None:
        for block in blocks:
            if block in self.held(slot):
                self.ends.add(block[:-1])
        for block in blocks:
            if block in self.reported[slot]:
                self.reported[slot] = {held for held in self.reported[slot] if held[: len(block)] != block}

    def snapshot(self, slot: int, runs: Iterable[tuple[Path, Path]]) -> None:
        confirmed: set[Path] = set()
        for parent, run in runs:
            if not parent or parent in self.held(slot):
                self.stored(slot, parent, run)
                confirmed |= prefixes(parent + run)
        self.reported[slot] = confirmed

    # --- inside ---

    def _cut(self, path: Path) -> None:
        """A path ends runs where it leaves the known ones, and at its own end."""
        self.ends |= {path[: self.known_blocks(path)], path}

    def _end_above(self, end: Path) -> Path:
        above = end[:-1]
        while above and above not in self.ends:
            above = above[:-1]
        return above

    def _take_back(self, end: Path, slot: int) -> None:
        while end and end not in self.computed[slot] and not self._is_wanted(end, slot):
            above = self._end_above(end)
            self._drop(end, len(above), slot)
            end = above

    def _is_wanted(self, end: Path, slot: int) -> bool:
        """Whether somebody in flight ends just there, or more is held below."""
        expected = [visit for visit in self.flights if visit.slot == slot and visit.is_expected and visit.path == end]
        below = [held for held in self.used[slot] if len(held) > len(end) and held[: len(end)] == end]
        return bool(expected or below)

    def _drop(self, end: Path, above: int, slot: int) -> None:
        for depth in range(above + 1, len(end) + 1):
            del self.used[slot][end[:depth]]
            self.computed[slot].discard(end[:depth])

    def _fit(self, slot: int) -> None:
        """The run that was used longest ago goes whole, from its end up to the end before it."""
        used = self.used[slot]
        while len(used) > self.capacity[slot]:
            oldest = min(used, key=used.__getitem__)
            above = self._end_above(oldest)
            self._drop(oldest, len(above), slot)
            self._forget_flights(slot)
            self._take_back(above, slot)

    def _forget_flights(self, slot: int) -> None:
        for visit in self.flights:
            if visit.slot == slot and visit.path not in self.used[slot]:
                visit.is_expected = False
