"""The simulated KV cache: blocks in a prefix tree, shared by runs, evicted leaf by leaf, least recently used first.

It imitates SGLang's radix cache at block granularity: a node is a run of chained block hashes, so a known hash means a
known prefix; what a match or an insertion ends inside of is split there; a pinned node protects all before it; what
nobody pins stays until space is wanted, and then goes a whole leaf at a time.

Rule kept: `tree + private + free == total`, always. It knows no tokens and no time; recency is a count of uses.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import final

from prebled.core.blocks import HASH_BYTES
from prebled.core.matching import common_blocks
from prebled.messages import KvChange, KvRemoved, KvStored
from prebled.worker.sim_watches import CacheNode, Watch, Watches


@final
class BlockCache:
    """All KV blocks of one simulated device: those in the tree, those private to a run, and the free ones."""

    def __init__(self, total_blocks: int, *, tells_changes: bool = False) -> None:
        """`tells_changes`: whether somebody will take them."""
        self.total_blocks = total_blocks
        self.private_blocks = 0
        self.pinned_blocks = 0
        self.tree_blocks = 0
        self.watches = Watches()
        self.root = CacheNode(b"", None)
        self._nodes = 0
        self._leaves: list[tuple[int, int, CacheNode]] = []  # a heap; entries of nodes used since are stale
        self._uses = 0
        self._looked = 0
        self._pushes = 0
        self._tells_changes = tells_changes
        self._changes: list[KvChange] = []
        self._removed: list[bytes] = []  # since the last of the changes

    @property
    def free_blocks(self) -> int:
        return self.total_blocks - self.private_blocks - self.tree_blocks

    @property
    def available_blocks(self) -> int:
        """Free, or in the tree without a pin and so free on demand."""
        return self.total_blocks - self.private_blocks - self.pinned_blocks

    @property
    def held_blocks(self) -> int:
        """Private or pinned: what runs hold, and eviction cannot take."""
        return self.private_blocks + self.pinned_blocks

    # --- what is cached ---

    def match(self, path: bytes, most: int) -> CacheNode:
        """The deepest node of the first `most` blocks of the path (the root if none is there). A node of which the
        path has only the beginning is split."""
        return self._descend(self.root, path, most * HASH_BYTES)

    def watch(self, path: bytes, most: int, name: int) -> Watch:
        """A match that is kept up to date until it is removed from `watches`."""
        watch = Watch(path, most * HASH_BYTES, self.root, name)
        self.watches.place(watch, self._descend(self.root, path, watch.size))
        return watch

    def look(self) -> None:
        """The watches are looked at, which counts as a use of what they have found, as a match does in SGLang."""
        self._uses += 1
        self._looked = self._uses

    def unpinned_on_path(self, node: CacheNode) -> int:
        """How many blocks pinning this one would take out of `available_blocks`."""
        at: CacheNode | None = node
        while at is not None and at.parent is not None and not at.pins:
            at = at.parent
        return node.depth - at.depth if at is not None else node.depth

    # --- who holds it ---

    def pin(self, node: CacheNode) -> None:
        """Protect the path down to this node until as many `unpin` calls."""
        self._touch(node)
        at = node
        while at.parent is not None:
            at.pins += 1
            if at.pins > 1:
                return
            self.pinned_blocks += at.blocks
            at = at.parent

    def unpin(self, node: CacheNode) -> None:
        self._touch(node)
        at = node
        while at.parent is not None:
            at.pins -= 1
            if at.pins > 0:
                return
            self.pinned_blocks -= at.blocks
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

    def extend(self, pinned: CacheNode, path: bytes, blocks: int) -> CacheNode:
        """Put a run's private blocks, up to the first `blocks` of its path, under its pinned node and move the pin to
        the last of them.

        Each costs one private block. Where another run put the same block there first, that one is used and ours is
        free again, as in SGLang.
        """
        at = self._descend(pinned, path, blocks * HASH_BYTES)
        self.private_blocks -= blocks - pinned.depth
        if at.depth < blocks:
            at = self._insert(at, path[at.depth * HASH_BYTES : blocks * HASH_BYTES])
        self.pin(at)
        self.unpin(pinned)
        return at

    def evict_all(self) -> None:
        """Forget all that nobody pins."""
        while self.tree_blocks > self.pinned_blocks:
            self._evict_one()

    # --- what others are told ---

    @property
    def has_changes(self) -> bool:
        return bool(self._changes or self._removed)

    def take_changes(self) -> tuple[KvChange, ...]:
        """How the tree has changed since the last call, in order."""
        self._close_removed()
        changes, self._changes = tuple(self._changes), []
        return changes

    def held(self) -> Iterator[KvStored]:
        """The whole tree, parents before children."""
        nodes = [self.root]
        for node in nodes:
            nodes.extend(node.children.values())
            if node is not self.root:
                yield _stored(node)

    # --- inside ---

    def _descend(self, node: CacheNode, path: bytes, size: int) -> CacheNode:
        """As far as the tree has the first `size` bytes of the path, from a node on it."""
        start = node.depth * HASH_BYTES
        while start < size and (child := node.children.get(path[start : start + HASH_BYTES])) is not None:
            run = child.run
            end = start + len(run)
            if end > size or not path.startswith(run, start):
                return self._split(child, common_blocks(run, path[start : min(end, size)]))
            node, start = child, end
        return node

    def _split(self, lower: CacheNode, blocks: int) -> CacheNode:
        """Cut a node after so many of its blocks; the new upper part is returned. The lower part stays the same object,
        and so does what pins or watches its end."""
        parent = lower.parent
        assert parent is not None
        upper = CacheNode(lower.run[: blocks * HASH_BYTES], parent)
        parent.children[upper.run[:HASH_BYTES]] = upper
        lower.run = lower.run[blocks * HASH_BYTES :]
        lower.parent = upper
        upper.children[lower.run[:HASH_BYTES]] = lower
        upper.pins = 1 if lower.pins else 0
        upper.used = lower.used
        self._nodes += 1
        return upper

    def _insert(self, parent: CacheNode, run: bytes) -> CacheNode:
        node = CacheNode(run, parent)
        first = run[:HASH_BYTES]
        parent.children[first] = node
        self._nodes += 1
        self.tree_blocks += node.blocks
        if self._tells_changes:
            self._close_removed()
            self._changes.append(_stored(node))
        for watch in self.watches.take_awaiting(first):
            self.watches.place(watch, self._descend(parent, watch.path, watch.size))
        return node

    def _touch(self, node: CacheNode) -> None:
        # Only the deepest node is marked. One before it is compared only after its last child went as the least
        # recently used of all: whatever else can go was used later, so it is next, as if it had been marked as well.
        self._uses += 1
        node.used = self._uses

    def _offer(self, node: CacheNode) -> None:
        if node.pins or node.children or node.parent is None:
            return
        if len(self._leaves) > 2 * self._nodes + 64:
            self._leaves = [entry for entry in self._leaves if self._is_current(entry[0], entry[2])]
            heapq.heapify(self._leaves)
        self._pushes += 1
        heapq.heappush(self._leaves, (node.used, self._pushes, node))

    def _is_current(self, used: int, node: CacheNode) -> bool:
        return node.used == used and not node.pins and not node.children and node.parent is not None

    def _evict_one(self) -> None:
        while True:
            used, _, node = heapq.heappop(self._leaves)
            if not self._is_current(used, node):
                continue
            if not node.watches or used >= self._looked:
                break
            node.used = self._looked
            self._offer(node)
        parent = node.parent
        assert parent is not None
        first = node.run[:HASH_BYTES]
        del parent.children[first]
        self.watches.climb(node, parent)
        node.parent = None  # marks entries of it as stale
        self._nodes -= 1
        self.tree_blocks -= node.blocks
        if self._tells_changes:
            self._removed.append(first)
        self._offer(parent)

    def _close_removed(self) -> None:
        if self._removed:
            self._changes.append(KvRemoved(b"".join(self._removed)))
            self._removed.clear()

    def check_invariants(self) -> None:
        """Recount everything; AssertionError if a count is off. For tests."""
        nodes = [self.root]
        watches: list[Watch] = []
        for node in nodes:
            watches.extend(node.watches)
            assert all(watch.node is node for watch in node.watches)
            for first, child in node.children.items():
                assert child.parent is node
                assert first == child.run[:HASH_BYTES]
                assert child.depth == node.depth + child.blocks
                assert child.pins == 0 or node.pins > 0 or node is self.root
            nodes.extend(node.children.values())
        del nodes[0]
        assert (self._nodes, self.tree_blocks) == (len(nodes), sum(node.blocks for node in nodes))
        assert self.pinned_blocks == sum(node.blocks for node in nodes if node.pins)
        assert self.private_blocks >= 0
        assert self.free_blocks >= 0
        offered = {id(node) for used, _, node in self._leaves if self._is_current(used, node)}
        assert offered == {id(node) for node in nodes if not node.pins and not node.children}
        self.watches.check_invariants(watches)
        for watch in watches:
            assert self.match(watch.path, watch.size // HASH_BYTES) is watch.node


def _stored(node: CacheNode) -> KvStored:
    assert node.parent is not None
    return KvStored(node.parent.run[-HASH_BYTES:], node.run)
