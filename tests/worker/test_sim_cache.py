"""The simulated KV cache against a naive one that marks every block on a path each time it is used."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prebled.worker.sim_cache import BlockCache, CacheBlock

Path = tuple[int, ...]


class NaiveCache:
    """Blocks are the paths to them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used: dict[Path, int] = {}
        self.pins: list[Path] = []
        self.private = 0
        self.clock = 0

    def touch(self, path: Path) -> None:
        self.clock += 1
        self.used.update({path[:end]: self.clock for end in range(1, len(path) + 1)})

    def match(self, path: Path) -> Path:
        return max((path[:end] for end in range(len(path) + 1) if path[:end] in self.used), key=len, default=())

    def held(self) -> set[Path]:
        return {path[:end] for path in self.pins for end in range(1, len(path) + 1)}

    def take(self, count: int) -> None:
        while self.total - self.private - len(self.used) < count:
            parents = {path[:-1] for path in self.used}
            leaves = [path for path in self.used if path not in parents and path not in self.held()]
            del self.used[min(leaves, key=self.used.__getitem__)]
        self.private += count


def hashes(path: Path) -> list[int]:
    """One number per block that stands for all of its path."""
    return [hash(path[:end]) for end in range(1, len(path) + 1)]


@given(
    st.integers(6, 14),
    st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.integers(0, 3)), max_size=60),
)
@settings(max_examples=200, deadline=None)
def test_the_same_blocks_survive_as_in_a_naive_cache(total: int, visits: list[tuple[list[int], int]]) -> None:
    """Each visit is a run that comes, takes what it lacks, and stays for a number of further visits."""
    cache, naive = BlockCache(total), NaiveCache(total)
    staying: list[tuple[int, CacheBlock, Path]] = []
    for at, (wanted, stay) in enumerate(visits):
        for entry in [entry for entry in staying if entry[0] <= at]:
            staying.remove(entry)
            cache.unpin(entry[1])
            naive.touch(entry[2])
            naive.pins.remove(entry[2])
        path = tuple(wanted)
        block, known = cache.match(hashes(path), len(path)), naive.match(path)
        assert block.depth == len(known)
        missing = len(path) - len(known)
        if missing + cache.unpinned_on_path(block) > cache.available_blocks:
            continue
        naive.touch(known)
        naive.pins.append(known)
        cache.pin(block)
        cache.take(missing)
        naive.take(missing)
        assert cache.held_blocks == naive.private + len(naive.held())
        naive.private -= missing
        naive.touch(path)
        naive.pins.remove(known)
        naive.pins.append(path)
        staying.append((at + 1 + stay, cache.extend(block, hashes(path)[block.depth :]), path))
        cache.check_invariants()
        assert cache.tree_blocks == len(naive.used)
        assert all(cache.match(hashes(kept), len(kept)).depth == len(kept) for kept in naive.used)


def test_a_block_that_two_runs_computed_is_kept_once() -> None:
    cache = BlockCache(10)
    first, second = cache.root, cache.root
    cache.take(4)
    first = cache.extend(first, [1, 2])
    second = cache.extend(second, [1, 2])
    assert first is second
    assert (cache.tree_blocks, cache.private_blocks, cache.free_blocks) == (2, 0, 8)
    cache.unpin(first)
    assert cache.held_blocks == 2
    cache.unpin(second)
    assert (cache.held_blocks, cache.available_blocks) == (0, 10)
