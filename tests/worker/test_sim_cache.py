"""The simulated KV cache against a naive one that keeps every block by its path and marks all of them at each use."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st
from sim_runs import held_by

from prebled.messages import KvChange, KvRemoved
from prebled.worker.sim_cache import BlockCache
from prebled.worker.sim_watches import CacheNode, Watch

Path = tuple[int, ...]


class NaiveCache:
    """Blocks are the paths to them; `ends` are those that a node ends with."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used: dict[Path, int] = {}
        self.ends: set[Path] = set()
        self.pins: list[Path] = []
        self.private = 0
        self.clock = 0

    def touch(self, path: Path) -> None:
        self.clock += 1
        self.used.update({path[:end]: self.clock for end in range(1, len(path) + 1)})
        self.ends.add(path)

    def match(self, path: Path) -> Path:
        """Splits, as a match does."""
        known = max((path[:end] for end in range(len(path) + 1) if path[:end] in self.used), key=len, default=())
        self.ends.add(known)
        return known

    def held(self) -> set[Path]:
        return {path[:end] for path in self.pins for end in range(1, len(path) + 1)}

    def take(self, count: int) -> None:
        while self.total - self.private - len(self.used) < count:
            parents = {path[:-1] for path in self.used}
            leaves = [path for path in self.used if path not in parents and path not in self.held()]
            leaf = min(leaves, key=self.used.__getitem__)
            del self.used[leaf]
            while (leaf := leaf[:-1]) and leaf not in self.ends:
                del self.used[leaf]
            self.ends &= self.used.keys() | {()}
        self.private += count


def path_bytes(path: Path) -> bytes:
    """One number per block that stands for all of its path."""
    return array("q", [hash(path[:end]) for end in range(1, len(path) + 1)]).tobytes()


@given(
    st.integers(6, 14),
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.integers(0, 3), st.booleans()), max_size=60
    ),
)
@settings(max_examples=200, deadline=None)
def test_the_same_blocks_survive_as_in_a_naive_cache(total: int, visits: list[tuple[list[int], int, bool]]) -> None:
    """Each visit is a run that comes, takes what it lacks, and stays for a number of further visits; or one that only
    watches for so long. Who watches sees, all the time, what a match would find, and the changes told add up."""
    cache, naive = BlockCache(total, tells_changes=True), NaiveCache(total)
    staying: list[tuple[int, CacheNode, Path]] = []
    watching: list[tuple[int, Watch, Path]] = []
    changes: list[KvChange] = []
    for at, (wanted, stay, only_watches) in enumerate(visits):
        for entry in [entry for entry in staying if entry[0] <= at]:
            staying.remove(entry)
            cache.unpin(entry[1])
            naive.touch(entry[2])
            naive.pins.remove(entry[2])
        for watch_entry in [entry for entry in watching if entry[0] <= at]:
            watching.remove(watch_entry)
            cache.watches.remove(watch_entry[1])
        path = tuple(wanted)
        if only_watches:
            watching.append((at + 1 + stay, cache.watch(path_bytes(path), len(path), at), path))
            naive.match(path)
        else:
            node, known = cache.match(path_bytes(path), len(path)), naive.match(path)
            assert node.depth == len(known)
            missing = len(path) - len(known)
            if missing + cache.unpinned_on_path(node) > cache.available_blocks:
                continue
            naive.touch(known)
            naive.pins.append(known)
            cache.pin(node)
            cache.take(missing)
            naive.take(missing)
            assert cache.held_blocks == naive.private + len(naive.held())
            naive.private -= missing
            naive.touch(path)
            naive.pins.remove(known)
            naive.pins.append(path)
            staying.append((at + 1 + stay, cache.extend(node, path_bytes(path), len(path)), path))
        for _, watch, watched in watching:  # a watch splits as often as it moves
            assert watch.node.depth == len(naive.match(watched))
        cache.check_invariants()
        assert cache.tree_blocks == len(naive.used)
        changes += cache.take_changes()
        assert held_by(changes) == {path_bytes(kept)[-8:] for kept in naive.used}
    assert held_by(cache.held()) == held_by(changes)


def test_a_block_that_two_runs_computed_is_kept_once() -> None:
    cache = BlockCache(10)
    path = path_bytes((1, 2))
    first, second = cache.root, cache.root
    cache.take(4)
    first = cache.extend(first, path, 2)
    second = cache.extend(second, path, 2)
    assert first is second
    assert (cache.tree_blocks, cache.private_blocks, cache.free_blocks) == (2, 0, 8)
    cache.unpin(first)
    assert cache.held_blocks == 2
    cache.unpin(second)
    assert (cache.held_blocks, cache.available_blocks) == (0, 10)


def store(cache: BlockCache, path: Path) -> None:
    cache.take(len(path))
    cache.unpin(cache.extend(cache.root, path_bytes(path), len(path)))


def test_a_leaf_goes_whole_and_a_match_that_ends_inside_splits_it() -> None:
    cache = BlockCache(10, tells_changes=True)
    store(cache, (1, 2, 3, 4))
    store(cache, (7, 8))
    cache.take_changes()
    cache.take(5)  # one more than is free
    assert cache.take_changes() == (KvRemoved(path_bytes((1, 2, 3, 4))[:8]),)
    assert cache.free_blocks == 3
    cache.give(5)
    store(cache, (1, 2, 3, 4))
    node = cache.match(path_bytes((1, 2)), 2)
    assert node.depth == 2
    store(cache, (7, 8))
    cache.take(5)
    assert cache.take_changes()[-1] == KvRemoved(path_bytes((1, 2, 3))[-8:])
    assert cache.match(path_bytes((1, 2, 3)), 3) is node


def test_what_is_watched_and_looked_at_goes_last() -> None:
    cache = BlockCache(6)
    store(cache, (1, 2))
    cache.watch(path_bytes((1, 2, 3)), 3, 0)
    store(cache, (5, 6))
    store(cache, (7, 8))
    cache.look()
    cache.take(2)
    assert [cache.match(path_bytes(path), 2).depth for path in ((1, 2), (5, 6), (7, 8))] == [2, 0, 2]
