"""The prefix tree as its documentation says it, block by block and without any care for speed.

A block is named by its whole path. `ends` are the paths at which a run ends: where a request ended, branched off, or
was cut. Uses are numbered; within a path the first block is used last, so that leaves are the oldest."""

from __future__ import annotations

from collections import Counter

Path = tuple[int, ...]


class NaiveTree:
    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.capacity: dict[int, int] = {}
        self.used: dict[int, dict[Path, tuple[int, int]]] = {}  # slot -> block -> (number of the use, -depth)
        self.visits: list[tuple[float, Path, int]] = []
        self.ends: set[Path] = set()
        self.uses = 0

    def known(self) -> set[Path]:
        blocks = {block for used in self.used.values() for block in used}
        for _, path, _ in self.visits:
            blocks.update(path[:depth] for depth in range(1, len(path) + 1))
        return blocks

    def held_blocks(self, path: Path, slot: int) -> int:
        return sum(path[:depth] in self.used[slot] for depth in range(1, len(path) + 1))

    def known_blocks(self, path: Path) -> int:
        known = self.known()
        return sum(path[:depth] in known for depth in range(1, len(path) + 1))

    def hits(self, path: Path) -> dict[int, int]:
        return dict(Counter(slot for _, visited, slot in self.visits if visited[: len(path)] == path))

    def _cut(self, path: Path) -> None:
        """A new path ends runs where it leaves the known ones, and at its own end."""
        known = self.known_blocks(path)
        self.ends.update({path[:known], path})

    def _use(self, path: Path, slot: int) -> None:
        self._cut(path)
        self.uses += 1
        for depth in range(1, len(path) + 1):
            self.used[slot][path[:depth]] = (self.uses, -depth)

    def book(self, path: Path, slot: int, now: float) -> tuple[float, Path, int]:
        self._use(path, slot)
        visit = (now, path, slot)
        self.visits.append(visit)
        self._fit(slot)
        return visit

    def stored(self, path: Path, slot: int) -> None:
        self._use(path, slot)
        self._fit(slot)

    def withdraw(self, visit: tuple[float, Path, int], keep_blocks: int) -> None:
        _, path, slot = visit
        if visit not in self.visits:
            return
        self.visits.remove(visit)
        for depth in range(len(path), 0, -1):
            run_start = max((len(end) for end in self.ends if end == path[: len(end)] and len(end) < depth), default=0)
            block = path[:depth]
            is_shared = slot in self.hits(block) or self._has_held_below(block, slot)
            if run_start >= keep_blocks and not is_shared:
                self.used[slot].pop(block, None)

    def _has_held_below(self, block: Path, slot: int) -> bool:
        return any(len(held) > len(block) and held[: len(block)] == block for held in self.used[slot])

    def evicted(self, path: Path, slot: int, keep_blocks: int) -> None:
        if self.known_blocks(path) <= keep_blocks:
            return
        cut = path[: keep_blocks + 1]
        if cut in self.used[slot]:
            self.ends.add(path[:keep_blocks])
        self.used[slot] = {block: use for block, use in self.used[slot].items() if block[: len(cut)] != cut}

    def forget_worker(self, slot: int) -> None:
        self.used[slot] = {}

    def advance(self, now: float) -> None:
        self.visits = [visit for visit in self.visits if visit[0] > now - self.window_s]

    def _fit(self, slot: int) -> None:
        """The run that was used longest ago goes whole, from its end up to the end before it."""
        used = self.used[slot]
        while len(used) > self.capacity[slot]:
            oldest = min(used, key=used.__getitem__)
            del used[oldest]
            while (above := oldest[:-1]) and above not in self.ends:
                del used[above]
                oldest = above
