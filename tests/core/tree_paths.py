"""Paths of small choices for tests of the prefix tree: equal prefix, equal hashes."""

from __future__ import annotations

from array import array

from naive_tree import Path

from prebled.core.blocks import HASH_BYTES
from prebled.core.prefix_nodes import Visit
from prebled.core.prefix_tree import PrefixTree
from prebled.messages import KvRemoved, KvStored

WINDOW_S = 10.0


def chain(path: Path) -> bytes:
    """Chained hashes."""
    seed, hashes = 7, array("Q")
    for step in path:
        seed = hash((seed, step)) & (2**64 - 1)
        hashes.append(seed)
    return hashes.tobytes()


def block(path: Path) -> bytes:
    """The hash of the last block; empty for none."""
    return chain(path)[-HASH_BYTES:]


def stored(parent: Path, run: Path) -> KvStored:
    return KvStored(block(parent), chain(parent + run)[len(parent) * HASH_BYTES :])


def removed(*paths: Path) -> KvRemoved:
    return KvRemoved(b"".join(map(block, paths)))


def tree_of(capacity: int = 100, max_blocks: int = 10**6, workers: int = 2) -> PrefixTree:
    tree = PrefixTree(max_blocks=max_blocks, window_s=WINDOW_S)
    for slot in range(workers):
        tree.set_capacity(slot, capacity)
    return tree


def book(tree: PrefixTree, path: Path, slot: int = 0, now: float = 0.0) -> Visit:
    return tree.book(tree.match(chain(path)), slot, now)


def held(tree: PrefixTree, path: Path, slot: int = 0) -> int:
    return int(tree.match(chain(path)).held_blocks(slot + 1)[slot])
