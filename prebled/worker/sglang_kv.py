"""What SGLang's cache holds, mirrored from its KV events and named by our block hashes. Pure.

SGLang names a block by a hash of its own; its events bring the tokens too. From them the chained hash of `core.blocks`
is computed, starting from the namespace (the daemon's model name, the adapter, the cache salt). The tokens are kept, so
that the hashes can be made anew for another daemon that serves the model under another name: four bytes for each token
in the cache, which itself takes thousands.

Rules it keeps: a block is held only while the block before it is, since nothing is found behind a gap; each change that
is given out follows from those given out before it. Events that would break this are counted (`KvOddities`) and what
cannot be attached is left out. Blocks in other tiers (host memory, disk) are not mirrored: what lies there alone has to
be fetched first, and counts as not held. A page is a block: SGLang publishes full pages only.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import msgspec
import xxhash

from prebled.core.blocks import namespace_seed
from prebled.messages import KvChange, KvCleared, KvRemoved, KvStored

_GPU = "GPU"
"""SGLang's name for the tier that the model reads, on a CPU too."""


class BlockStored(msgspec.Struct, frozen=True, tag=True):
    """SGLang 0.5.23: blocks that follow each other, and all their tokens. `parent_block_hash` None: a prompt begins.
    Under speculative decoding each token comes paired with the one after it."""

    block_hashes: tuple[int, ...]
    token_ids: list[int | tuple[int, int]]
    block_size: int
    parent_block_hash: int | None = None
    medium: str | None = None
    cache_salt: str | None = None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, tag=True):
    """SGLang 0.5.23: blocks of evicted nodes of its tree; a node's blocks in order, a child node before its parent."""

    block_hashes: tuple[int, ...]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, tag=True):
    """SGLang 0.5.23: the cache was flushed."""


class ChildKv(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What SGLang's cache did, in order. A message of our own child, beside `ChildReady`."""

    events: tuple[BlockStored | BlockRemoved | AllBlocksCleared, ...]


_PREFIX = msgspec.msgpack.encode(ChildKv(()))[:-1]  # all but the empty array of events
_DECODER = msgspec.msgpack.Decoder(ChildKv)


def kv_frame(events: bytes) -> bytes:
    """The frame that carries these events, an encoded array of SGLang's own structs."""
    return _PREFIX + events


def is_kv_frame(frame: bytes) -> bool:
    """Whether a scheduler's frame is one for `KvMirror.take`."""
    return frame.startswith(_PREFIX)


@dataclasses.dataclass(slots=True)
class KvOddities:
    """Blocks whose events made no sense; all zero unless SGLang's events are incomplete."""

    unknown_parents: int = 0  # stored behind a block that is not held: left out
    unknown_removed: int = 0  # removed but not held
    orphans: int = 0  # left behind a removed block: removed with it


class _Space(NamedTuple):
    """What sets apart equal tokens under one model name."""

    lora: str
    cache_salt: str


class _Block:
    __slots__ = ("hash", "is_held", "parent", "space", "tokens")

    def __init__(self, tokens: bytes, space: _Space, parent: _Block | None, hash_: int) -> None:
        self.tokens = tokens
        self.space = space
        self.parent = parent
        self.hash = hash_
        self.is_held = True

    @property
    def parent_hash(self) -> bytes:
        """As in KvStored."""
        return b"" if self.parent is None else _as_bytes((self.parent.hash,))


class KvMirror:
    """`block_tokens`: SGLang's page size, which is ours."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._model = ""
        # By SGLang's hash, and in the order of storing: a block comes after the one before it.
        self._blocks: dict[int, _Block] = {}
        self._children: dict[_Block, int] = {}  # how many held blocks follow; no entry for none
        self.oddities = KvOddities()

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def take(self, frame: bytes) -> tuple[KvChange, ...]:
        """Apply the events of a frame; what changed, in order. Raises ValueError for events that do not decode or are
        about blocks of another size."""
        changes: list[KvChange] = []
        for event in _DECODER.decode(frame).events:
            match event:
                case AllBlocksCleared():
                    self._blocks.clear()
                    self._children.clear()
                    changes.append(KvCleared())
                case _ if event.medium not in (None, _GPU):
                    continue
                case BlockStored():
                    changes += self._store(event)
                case BlockRemoved(block_hashes=names):
                    changes += self._remove(names)
        return tuple(changes)

    def held(self) -> tuple[KvStored, ...]:
        """All blocks, as runs, parents before children."""
        runs: list[tuple[_Block, list[int]]] = []
        last: _Block | None = None
        for block in self._blocks.values():
            if runs and block.parent is last:
                runs[-1][1].append(block.hash)
            else:
                runs.append((block, [block.hash]))
            last = block
        return tuple(KvStored(first.parent_hash, _as_bytes(hashes)) for first, hashes in runs)

    def set_namespace(self, model: str) -> None:
        """Start all hashes from this model's name, those of the blocks held included."""
        if model == self._model:
            return
        self._model = model
        for block in self._blocks.values():
            block.hash = self._hash(block.tokens, block.space, block.parent)

    def _store(self, event: BlockStored) -> list[KvStored]:
        width, blocks = self._block_tokens, len(event.block_hashes)
        if event.block_size != width or len(event.token_ids) != blocks * width:
            raise ValueError(
                f"SGLang stored {blocks} blocks of {event.block_size} with {len(event.token_ids)} tokens in all; "
                f"blocks have {width} tokens here"
            )
        parent = None
        if event.parent_block_hash is not None:
            parent = self._blocks.get(event.parent_block_hash)
            if parent is None:
                self.oddities.unknown_parents += blocks
                return []
        tokens, space = _token_bytes(event.token_ids), _Space(event.lora_name or "", event.cache_salt or "")
        new: list[_Block] = []
        for index, name in enumerate(event.block_hashes):
            block = self._blocks.get(name)
            if block is None:
                cut = tokens[4 * width * index : 4 * width * (index + 1)]
                block = _Block(cut, space, parent, self._hash(cut, space, parent))
                self._blocks[name] = block
                if parent is not None:
                    self._children[parent] = self._children.get(parent, 0) + 1
                new.append(block)
            parent = block
        return [KvStored(new[0].parent_hash, _as_bytes([block.hash for block in new]))] if new else []

    def _remove(self, names: Sequence[int]) -> list[KvRemoved]:
        gone = []
        for name in names:
            block = self._blocks.pop(name, None)
            if block is None:
                self.oddities.unknown_removed += 1
            else:
                self._drop(block)
                gone.append(block)
        if any(block in self._children for block in gone):
            self._drop_orphans()
        heads = [block.hash for block in gone if block.parent is None or block.parent.is_held]
        return [KvRemoved(_as_bytes(heads))] if heads else []

    def _drop(self, block: _Block) -> None:
        block.is_held = False
        parent = block.parent
        if parent is None:
            return
        left = self._children[parent] - 1
        if left:
            self._children[parent] = left
        else:
            del self._children[parent]

    def _drop_orphans(self) -> None:
        """Drop what follows a block that is gone. One pass finds all, since parents come first."""
        orphans = []
        for name, block in self._blocks.items():
            if block.parent is not None and not block.parent.is_held:
                self._drop(block)
                orphans.append(name)
        for name in orphans:
            del self._blocks[name]
        self.oddities.orphans += len(orphans)

    def _hash(self, tokens: bytes, space: _Space, parent: _Block | None) -> int:
        seed = namespace_seed(self._model, space.lora, space.cache_salt) if parent is None else parent.hash
        return xxhash.xxh3_64_intdigest(tokens, seed)


def _as_bytes(hashes: Iterable[int]) -> bytes:
    return array("Q", hashes).tobytes()


def _token_bytes(ids: list[int | tuple[int, int]]) -> bytes:
    """As uint32; of pairs, the first of each."""
    if ids and isinstance(ids[0], tuple):
        ids = [pair[0] for pair in ids if isinstance(pair, tuple)]
    return array("I", cast("list[int]", ids)).tobytes()
