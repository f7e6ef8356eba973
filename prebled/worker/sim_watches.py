"""The nodes of the simulated KV cache, and watches on it: how much of a path is cached, kept up to date.

A watch stands at the deepest node on its path and waits for one hash, that of the block after it: only when that block
is inserted, or its node evicted, does it move. So a queue of any length costs nothing while the cache changes
elsewhere. The tree itself is the cache's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from prebled.core.blocks import HASH_BYTES


@final
class CacheNode:
    """A run of blocks. `depth`: blocks from the first of the prompt to the end of this run. `pins`: runs that end here,
    plus children with pins of their own. A node that was evicted has no parent."""

    __slots__ = ("children", "depth", "parent", "pins", "run", "used", "watches")

    def __init__(self, run: bytes, parent: CacheNode | None) -> None:
        self.run = run
        self.parent = parent
        self.depth: int = len(run) // HASH_BYTES + (parent.depth if parent is not None else 0)
        self.children: dict[bytes, CacheNode] = {}
        self.watches: dict[Watch, None] = {}
        self.pins = 0
        self.used = 0

    @property
    def blocks(self) -> int:
        return len(self.run) // HASH_BYTES


@final
class Watch:
    """`node.depth` blocks of the first `size` bytes of the path are in the cache. `name`: its owner's."""

    __slots__ = ("name", "node", "path", "size")

    def __init__(self, path: bytes, size: int, node: CacheNode, name: int) -> None:
        self.path = path
        self.size = size
        self.node = node
        self.name = name

    @property
    def awaited(self) -> bytes:
        """The hash of the first block that is not in the cache; empty if all is."""
        start = self.node.depth * HASH_BYTES
        return self.path[start : min(start + HASH_BYTES, self.size)]


@final
class Watches:
    """All watches on one cache. `moves` counts every change of what one of them sees."""

    def __init__(self) -> None:
        self.moves = 0
        self._awaited: dict[bytes, dict[Watch, None]] = {}
        self._moved: dict[Watch, None] = {}

    def place(self, watch: Watch, node: CacheNode) -> None:
        """Its path is cached as far as this node."""
        watch.node = node
        node.watches[watch] = None
        self.moves += 1
        self._moved[watch] = None
        if awaited := watch.awaited:
            self._awaited.setdefault(awaited, {})[watch] = None

    def climb(self, node: CacheNode, parent: CacheNode) -> None:
        """A node is evicted: those on it stand at its parent."""
        for watch in node.watches:
            self._stop_awaiting(watch)
            self.place(watch, parent)
        node.watches = {}

    def take_awaiting(self, block: bytes) -> Iterable[Watch]:
        """Those that waited for this block. They stand nowhere until they are placed."""
        watches = self._awaited.pop(block, {})
        for watch in watches:
            del watch.node.watches[watch]
        return watches

    def remove(self, watch: Watch) -> None:
        """It is not wanted any more."""
        del watch.node.watches[watch]
        self._moved.pop(watch, None)
        self._stop_awaiting(watch)

    def take_moved(self) -> Iterable[Watch]:
        """Those that are new, or have moved since the last call."""
        moved, self._moved = self._moved, {}
        return moved

    def check_invariants(self, watches: Iterable[Watch]) -> None:
        """AssertionError unless these are all, and each waits for what it should. For tests."""
        expected = {watch: watch.awaited for watch in watches if watch.awaited}
        assert {watch: block for block, of_it in self._awaited.items() for watch in of_it} == expected
        assert all(self._awaited.values())

    def _stop_awaiting(self, watch: Watch) -> None:
        if awaited := watch.awaited:
            watches = self._awaited[awaited]
            del watches[watch]
            if not watches:
                del self._awaited[awaited]
