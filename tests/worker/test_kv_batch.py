"""Changes put together and cut apart say the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from naive_cache import NaiveCache, removed, stored

from prebled.messages import KvChange, KvChanged, KvCleared, KvRemoved, KvStored, encode
from prebled.worker.kv_batch import KvBatch, parts

BLOCKS = st.integers(1, 9)
CHANGES: st.SearchStrategy[list[KvChange]] = st.lists(
    st.one_of(
        st.builds(
            lambda parent, run: stored(*run, parent=parent),
            st.none() | BLOCKS,
            st.lists(BLOCKS, min_size=1, max_size=4, unique=True),
        ),
        st.builds(lambda gone: removed(*gone), st.lists(BLOCKS, min_size=1, max_size=3)),
        st.just(KvCleared()),
    ),
    max_size=12,
)


def batched(*changes: KvChange) -> list[KvChange]:
    batch = KvBatch()
    batch.add(changes)
    return batch.take()


def applied(changes: list[KvChange]) -> NaiveCache:
    cache = NaiveCache()
    for change in changes:
        cache.apply(change)
    return cache


def test_neighbours_of_one_kind_become_one() -> None:
    assert batched(removed(1), removed(2, 3), stored(4), stored(5, 6, parent=4), stored(7, parent=4)) == [
        removed(1, 2, 3),
        stored(4, 5, 6),
        stored(7, parent=4),
    ]


def test_nothing_before_a_clearing_is_kept() -> None:
    assert batched(stored(1), removed(1), KvCleared(), stored(2), KvCleared()) == [KvCleared()]
    assert batched(stored(1), KvCleared(), stored(2)) == [KvCleared(), stored(2)]


def test_a_batch_is_empty_once_taken_or_cleared() -> None:
    batch = KvBatch()
    batch.add([stored(1)])
    assert batch
    assert batch.take() == [stored(1)]
    assert not batch
    batch.add([stored(2, parent=1)])
    batch.clear()
    batch.add([removed(3)])
    assert batch.take() == [removed(3)]


@given(CHANGES, st.lists(st.integers(0, 12), max_size=3))
def test_a_batch_ends_in_the_same_state(changes: list[KvChange], cuts: list[int]) -> None:
    whole = KvBatch()
    edges = sorted({0, len(changes), *(min(cut, len(changes)) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        whole.add(changes[begin:end])
    taken = whole.take()
    assert applied(taken) == applied(changes)
    assert len(taken) <= len(changes)
    assert applied([change for part in parts(taken, 100) for change in part]) == applied(changes)


def test_parts_are_bounded_and_a_long_run_goes_on_in_the_next() -> None:
    run, gone = stored(*range(1, 1001), parent=5000), removed(*range(1, 1001))
    pieces = list(parts([run, gone, KvCleared()], 1024))
    assert all(len(encode(KvChanged(1, 1, piece))) <= 1024 + 64 for piece in pieces)  # type: ignore[arg-type]
    changes = [change for piece in pieces for change in piece]
    runs = [change for change in changes if isinstance(change, KvStored)]
    assert b"".join(one.hashes for one in runs) == run.hashes
    assert [one.parent for one in runs[1:]] == [one.hashes[-8:] for one in runs[:-1]]
    assert b"".join(one.hashes for one in changes if isinstance(one, KvRemoved)) == gone.hashes
    assert changes[-1] == KvCleared()


def test_many_small_changes_fill_a_part() -> None:
    pieces = list(parts([stored(block) for block in range(1, 201)], 1024))
    assert [len(piece) for piece in pieces[:-1]] == [1024 // 40] * (len(pieces) - 1)
    assert list(parts([], 1024)) == []
