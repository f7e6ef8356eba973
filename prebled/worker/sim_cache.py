"""The simulated KV cache: blocks in a prefix tree, shared by runs, evicted leaf by leaf, least recently used first.

It imitates SGLang's radix cache at block granularity: a block is found by its chained hash, so a known hash means a
known prefix; a pinned block protects every block before it; what nobody pins stays until space is wanted. Rule kept:
`tree + private + free == total`, always. It knows no tokens and no time; recency is a count of uses.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from typing import final


@final
class CacheBlock:
    """One block of the tree. `pins`: runs whose deepest block this is, plus children with pins of their own."""

    __slots__ = ("block_hash", "children", "depth", "parent", "pins", "used")

    def __init__(self, block_hash: int, parent: CacheBlock | None) -> None:
        self.block_hash = block_hash
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children = 0
        self.pins = 0
        self.used = 0


@final
class BlockCache:
    """All KV blocks of one simulated device: those in the tree, those private to a run, and the free ones."""

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self.private_blocks = 0
        self.pinned_blocks = 0
        self.root = CacheBlock(0, None)
        self._blocks: dict[int, CacheBlock] = {}
        self._leaves: list[tuple[int, int, CacheBlock]] = []  # a heap; entries of blocks used since are stale
        self._uses = 0
        self._pushes = 0

    @property
    def tree_blocks(self) -> int:
        return len(self._blocks)

    @property
    def free_blocks(self) -> int:
        return self.total_blocks - self.private_blocks - len(self._blocks)

    @property
    def available_blocks(self) -> int:
        """Free, or in the tree without a pin and so free on demand."""
        return self.total_blocks - self.private_blocks - self.pinned_blocks

    @property
    def held_blocks(self) -> int:
        """Private or pinned: what runs hold, and eviction cannot take."""
        return self.private_blocks + self.pinned_blocks

    def match(self, hashes: Sequence[int], most: int) -> CacheBlock:
        """The deepest block of the first `most` hashes that is in the tree (the root if none is)."""
        # A block is never there without all before it, so the known ones are a prefix: few look-ups find its end.
        known = bisect.bisect_left(range(most), True, key=lambda i: hashes[i] not in self._blocks)
        return self._blocks[hashes[known - 1]] if known else self.root

    def unpinned_on_path(self, block: CacheBlock) -> int:
        """How many blocks pinning this one would take out of `available_blocks`."""
        count = 0
        at: CacheBlock | None = block
        while at is not None and at.pins == 0 and at.parent is not None:
            count += 1
            at = at.parent
        return count

    def pin(self, block: CacheBlock) -> None:
        """Protect the path down to this block until as many `unpin` calls."""
        self._touch(block)
        at = block
        while at.parent is not None:
            at.pins += 1
            if at.pins > 1:
                return
            self.pinned_blocks += 1
            at = at.parent

    def unpin(self, block: CacheBlock) -> None:
        self._touch(block)
        at = block
        while at.parent is not None:
            at.pins -= 1
            if at.pins > 0:
                return
            self.pinned_blocks -= 1
            self._offer(at)
            at = at.parent

    def take(self, count: int) -> None:
        """Make `count` blocks private, evicting as needed. The caller has seen that so many are available."""
        assert count <= self.available_blocks, f"{count} blocks wanted, {self.available_blocks} available"
        while self.free_blocks < count:
            self._evict_one()
        self.private_blocks += count

    def give(self, count: int) -> None:
        """Private blocks become free."""
        assert 0 <= count <= self.private_blocks, f"{count} blocks given back of {self.private_blocks} taken"
        self.private_blocks -= count

    def extend(self, pinned: CacheBlock, hashes: Sequence[int]) -> CacheBlock:
        """Put a run's next private blocks under its pinned block and move the pin to the last of them.

        Each costs one private block. Where another run put the same block there first, that one is used and ours is
        free again, as in SGLang.
        """
        at = pinned
        for block_hash in hashes:
            child = self._blocks.get(block_hash)
            self.private_blocks -= 1
            if child is None:
                child = self._blocks[block_hash] = CacheBlock(block_hash, at)
                at.children += 1
            at = child
        if at is not pinned:
            self.pin(at)
            self.unpin(pinned)
        return at

    def check_invariants(self) -> None:
        """Recount everything; AssertionError if a count is off. For tests."""
        children = dict.fromkeys([*self._blocks.values(), self.root], 0)
        for block in self._blocks.values():
            assert block.parent is not None
            assert block.parent in children, "a block outlived the one before it"
            assert block.depth == block.parent.depth + 1
            children[block.parent] += 1
        assert all(block.children == count for block, count in children.items())
        assert self.pinned_blocks == sum(block.pins > 0 for block in self._blocks.values())
        assert all(b.parent is self.root or b.parent.pins for b in self._blocks.values() if b.pins and b.parent)
        assert self.private_blocks >= 0
        assert self.free_blocks >= 0
        offered = {id(block) for used, _, block in self._leaves if self._is_current(used, block)}
        assert offered == {id(b) for b in self._blocks.values() if not b.pins and not b.children}

    def _touch(self, block: CacheBlock) -> None:
        # Only the deepest block is marked. One before it is compared only after its last child went as the least
        # recently used of all: whatever else can go was used later, so it is next, as if it had been marked as well.
        self._uses += 1
        block.used = self._uses

    def _offer(self, block: CacheBlock) -> None:
        if block.pins or block.children or block.parent is None:
            return
        if len(self._leaves) > 2 * len(self._blocks) + 64:
            self._leaves = [entry for entry in self._leaves if self._is_current(entry[0], entry[2])]
            heapq.heapify(self._leaves)
        self._pushes += 1
        heapq.heappush(self._leaves, (block.used, self._pushes, block))

    def _is_current(self, used: int, block: CacheBlock) -> bool:
        return block.used == used and not block.pins and not block.children and block.parent is not None

    def _evict_one(self) -> None:
        while True:
            used, _, block = heapq.heappop(self._leaves)
            if self._is_current(used, block):
                break
        parent = block.parent
        assert parent is not None
        del self._blocks[block.block_hash]
        block.parent = None  # marks entries of it as stale
        parent.children -= 1
        self._offer(parent)
