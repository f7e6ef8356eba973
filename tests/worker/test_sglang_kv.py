"""The mirror of SGLang's cache, fed with events as SGLang 0.5.23 encodes them, and held against a naive model."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_cache import NaiveCache

from prebled.core.blocks import hash_path, namespace_seed
from prebled.messages import KvChange, KvCleared, KvRemoved, KvStored
from prebled.worker.sglang_kv import KvMirror, is_kv_frame, kv_frame

WIDTH = 4


def stored_event(names: list[int], tokens: list[Any], parent: int | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": WIDTH,
        "lora_id": None,
        "medium": "GPU",
        **fields,
    }


def removed_event(*names: int, medium: str = "GPU") -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": names, "medium": medium}


CLEARED = {"type": "AllBlocksCleared"}


def frame(*events: dict[str, Any]) -> bytes:
    return kv_frame(msgspec.msgpack.encode(events))


def path(tokens: list[int], model: str = "", lora: str = "", salt: str = "") -> bytes:
    return hash_path(np.asarray(tokens, dtype="<u4").tobytes(), WIDTH, namespace_seed(model, lora, salt))


def tokens(blocks: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 50_000, blocks * WIDTH)]


@pytest.fixture
def mirror() -> KvMirror:
    return KvMirror(WIDTH)


def is_fine(mirror: KvMirror) -> bool:
    oddities = mirror.oddities
    return (oddities.unknown_parents, oddities.unknown_removed, oddities.orphans) == (0, 0, 0)


def test_stored_blocks_have_the_hashes_of_the_core(mirror: KvMirror) -> None:
    one = tokens(5)
    changes = mirror.take(frame(stored_event([-11, 12], one[:8]), stored_event([13, 14, 15], one[8:], parent=12)))
    whole = path(one)
    assert changes == (KvStored(b"", whole[:16]), KvStored(whole[8:16], whole[16:]))
    assert mirror.held() == (KvStored(b"", whole),)
    assert len(mirror) == 5


def test_each_namespace_has_its_own_hashes(mirror: KvMirror) -> None:
    one = tokens(2)
    mirror.set_namespace("m")
    changes = mirror.take(
        frame(
            stored_event([1, 2], one),
            stored_event([3, 4], one, cache_salt="s"),
            stored_event([5, 6], one, lora_name="l"),
            stored_event([7], one[:4], cache_salt="s", lora_name="l", session_id="ignored"),
        )
    )
    expected = [path(one, "m"), path(one, "m", salt="s"), path(one, "m", "l"), path(one[:4], "m", "l", "s")]
    assert [change.hashes for change in changes if isinstance(change, KvStored)] == expected


def test_another_model_name_makes_all_hashes_anew(mirror: KvMirror) -> None:
    one, other = tokens(4), tokens(3, seed=1)
    mirror.set_namespace("first")
    mirror.take(frame(stored_event([1, 2, 3, 4], one), stored_event([5], other[:4], 2, cache_salt="s")))
    mirror.set_namespace("second")
    whole = path(one, "second")
    assert mirror.held()[0] == KvStored(b"", whole)
    assert mirror.held()[1].parent == whole[8:16]
    assert mirror.take(frame(removed_event(4))) == (KvRemoved(whole[24:]),)


def test_of_each_run_that_goes_the_first_block_is_told(mirror: KvMirror) -> None:
    one = tokens(6)
    branch = tokens(2, seed=1)
    mirror.take(frame(stored_event([1, 2, 3, 4, 5, 6], one), stored_event([7, 8], branch, parent=3)))
    whole, other = path(one), path([*one[:12], *branch])
    # SGLang evicts node by node, leaves first, and puts what it evicted into one event
    assert mirror.take(frame(removed_event(5, 6, 4, 7, 8))) == (KvRemoved(whole[24:32] + other[24:32]),)
    assert mirror.held() == (KvStored(b"", whole[:24]),)
    assert mirror.take(frame(removed_event(3, 1, 2))) == (KvRemoved(whole[:8]),)
    assert mirror.held() == ()
    assert is_fine(mirror)


def test_what_was_evicted_may_come_again(mirror: KvMirror) -> None:
    one = tokens(3)
    mirror.take(frame(stored_event([1, 2, 3], one)))
    changes = mirror.take(frame(removed_event(2, 3), stored_event([2, 3], one[4:], parent=1)))
    whole = path(one)
    assert changes == (KvRemoved(whole[8:16]), KvStored(whole[:8], whole[8:]))
    assert mirror.held() == (KvStored(b"", whole),)


def test_what_is_held_already_is_not_told_again(mirror: KvMirror) -> None:
    one = tokens(3)
    mirror.take(frame(stored_event([1, 2], one[:8])))
    whole = path(one)
    assert mirror.take(frame(stored_event([1, 2], one[:8]))) == ()
    assert mirror.take(frame(stored_event([1, 2, 3], one))) == (KvStored(whole[8:16], whole[16:]),)


def test_a_flush_clears(mirror: KvMirror) -> None:
    mirror.take(frame(stored_event([1, 2], tokens(2))))
    assert mirror.take(frame(CLEARED, stored_event([1], tokens(1)))) == (KvCleared(), KvStored(b"", path(tokens(1))))
    assert len(mirror) == 1


def test_other_tiers_are_not_mirrored(mirror: KvMirror) -> None:
    mirror.take(frame(stored_event([1, 2], tokens(2))))
    host = stored_event([3], tokens(1, seed=1), medium="CPU_PINNED")
    assert mirror.take(frame(host, removed_event(1, medium="CPU_PINNED"), removed_event(3, medium="CPU_PINNED"))) == ()
    assert len(mirror) == 2


def test_what_follows_an_unknown_block_is_counted_and_left_out(mirror: KvMirror) -> None:
    one = tokens(4)
    assert mirror.take(frame(stored_event([2, 3], one[4:12], parent=1), stored_event([4], one[12:], parent=3))) == ()
    assert mirror.take(frame(removed_event(3, 4))) == ()
    assert (mirror.oddities.unknown_parents, mirror.oddities.unknown_removed) == (3, 2)
    assert mirror.held() == ()


def test_what_is_left_behind_a_removed_block_goes_too(mirror: KvMirror) -> None:
    one = tokens(5)
    mirror.take(frame(stored_event([1, 2, 3, 4, 5], one), stored_event([6], tokens(1, seed=1), parent=4)))
    whole = path(one)
    assert mirror.take(frame(removed_event(2))) == (KvRemoved(whole[8:16]),)
    assert mirror.held() == (KvStored(b"", whole[:8]),)
    assert mirror.oddities.orphans == 4
    assert mirror.take(frame(stored_event([2], one[4:8], parent=1))) == (KvStored(whole[:8], whole[8:16]),)


def test_of_paired_tokens_the_first_counts(mirror: KvMirror) -> None:
    one = tokens(2)
    pairs = list(zip(one, [*one[1:], 7], strict=True))
    assert mirror.take(frame(stored_event([1, 2], pairs))) == (KvStored(b"", path(one)),)


@pytest.mark.parametrize(
    "event", [stored_event([1], tokens(2), block_size=8), stored_event([1, 2], tokens(1)), {"type": "BlockMoved"}]
)
def test_events_that_cannot_be_about_these_blocks_are_refused(mirror: KvMirror, event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"blocks of|BlockMoved"):
        mirror.take(frame(event))


def test_frames_are_told_from_others() -> None:
    assert is_kv_frame(frame(CLEARED))
    assert is_kv_frame(frame(*[CLEARED] * 100))
    assert not is_kv_frame(msgspec.msgpack.encode(["BatchTokenIDOutput", 1]))


class Tree:
    """Plays SGLang: nodes of several blocks on one of three paths, evicted leaf by leaf."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.parents: dict[int, int | None] = {}  # by SGLang's name of a block
        self.paths: dict[int, list[int]] = {}  # the tokens from the root to the end of a block

    def grow(self) -> dict[str, Any]:
        parent = self.rng.choice([None, *self.parents])
        before = self.paths[parent] if parent is not None else []
        new = [[self.rng.randrange(3)] * WIDTH for _ in range(self.rng.randint(1, 4))]
        names, below = [], parent
        for block in new:
            before = [*before, *block]
            name = hash(tuple(before))
            self.parents.setdefault(name, below)
            self.paths[name] = before
            names.append(name)
            below = name
        return stored_event(names, [token for block in new for token in block], parent)

    def shrink(self) -> dict[str, Any]:
        gone: list[int] = []
        for _ in range(self.rng.randint(1, 5)):
            leaves = [name for name in self.parents if name not in self.parents.values()]
            if leaves:
                gone.append(self.rng.choice(leaves))
                del self.parents[gone[-1]]
        return removed_event(*gone)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_the_mirror_equals_the_tree_and_its_changes_rebuild_it(seed: int) -> None:
    rng = random.Random(seed)
    tree, mirror, told = Tree(rng), KvMirror(WIDTH), NaiveCache()
    mirror.set_namespace("m")
    for _ in range(rng.randint(1, 25)):
        events = [tree.grow() if rng.random() < 0.6 else tree.shrink() for _ in range(rng.randint(1, 3))]
        changes: tuple[KvChange, ...] = mirror.take(frame(*events))
        for change in changes:
            told.apply(change)
        paths = [path(tree.paths[name], "m") for name in tree.parents]
        expected = {int.from_bytes(one[-8:], "little"): int.from_bytes(one[-16:-8], "little") for one in paths}
        assert told.parents == expected
        assert NaiveCache(mirror.held()).parents == expected
    assert is_fine(mirror)
