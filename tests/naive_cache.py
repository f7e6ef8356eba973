"""What a cache holds, as plainly as it can be told: the rules of the messages, one block at a time. Blocks are small
numbers here, their hashes those numbers in eight bytes."""

from __future__ import annotations

from collections.abc import Iterable

from prebled.messages import KvChange, KvCleared, KvRemoved, KvStored


def name(block: int) -> bytes:
    return block.to_bytes(8, "little")


def stored(*blocks: int, parent: int | None = None) -> KvStored:
    """These blocks, each after the one before it."""
    return KvStored(b"" if parent is None else name(parent), b"".join(map(name, blocks)))


def removed(*blocks: int) -> KvRemoved:
    return KvRemoved(b"".join(map(name, blocks)))


def blocks(hashes: bytes) -> list[int]:
    """The blocks with these hashes."""
    return [int.from_bytes(hashes[i : i + 8], "little") for i in range(0, len(hashes), 8)]


class NaiveCache:
    """Each block with the one before it (0: a prompt begins)."""

    def __init__(self, runs: Iterable[KvStored] = ()) -> None:
        self.parents: dict[int, int] = {}
        for run in runs:
            self.apply(run)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NaiveCache) and self.parents == other.parents

    def __repr__(self) -> str:
        return f"NaiveCache({self.parents})"

    def copy(self) -> NaiveCache:
        twin = NaiveCache()
        twin.parents = dict(self.parents)
        return twin

    def apply(self, change: KvChange) -> None:
        match change:
            case KvCleared():
                self.parents.clear()
            case KvRemoved(hashes):
                for block in blocks(hashes):
                    self._remove(block)
            case KvStored(parent, hashes):
                before = int.from_bytes(parent, "little")
                for block in blocks(hashes):
                    if before and before not in self.parents:
                        return
                    self.parents.setdefault(block, before)
                    before = block

    def runs(self) -> list[KvStored]:
        """Parents first, each block a run of its own."""
        told: list[int] = []
        while len(told) < len(self.parents):
            told += [b for b, before in self.parents.items() if b not in told and (not before or before in told)]
        return [KvStored(name(self.parents[b]) if self.parents[b] else b"", name(b)) for b in told]

    def _remove(self, block: int) -> None:
        if self.parents.pop(block, None) is None:
            return
        for child in [child for child, before in self.parents.items() if before == block]:
            self._remove(child)
