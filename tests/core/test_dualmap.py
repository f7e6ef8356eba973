"""DualMap: the pair of a prefix, the objective, and the adaptive prefix."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace
from sights import path, sight

from prebled.core import dualmap as dualmap_module
from prebled.core.dualmap import DualMap
from prebled.core.load import Work
from prebled.core.sight import Sight
from prebled.core.types import WorkerId

IDS = [WorkerId(f"w{number}") for number in range(8)]


def pair(policy: DualMap, name: int, ids: list[WorkerId] = IDS) -> list[WorkerId]:
    return [ids[index] for index in policy._pair(path(name, 1), ids)]


def seen(name: int, cached: dict[int, int] | None = None, **rows: list[float]) -> Sight:
    held = [(cached or {}).get(slot, 0) for slot in range(8)]
    return sight(held, hashes=path(name, 15), ids=IDS, **rows)


def test_a_prefix_has_two_workers_of_its_own_evenly_spread() -> None:
    policy = DualMap()
    pairs = [pair(policy, name) for name in range(2000)]
    assert all(len(set(one)) == 2 for one in pairs)
    assert pairs == [pair(DualMap(), name) for name in range(2000)]
    uses = Counter(worker for one in pairs for worker in one)
    assert all(400 < uses[worker] < 600 for worker in IDS)
    assert len({tuple(one) for one in pairs}) == 8 * 7 // 2  # not one second place for each first


def test_pairs_hardly_move_when_a_worker_leaves() -> None:
    policy = DualMap()
    before = [pair(policy, name) for name in range(1000)]
    after = [pair(policy, name, IDS[:-1]) for name in range(1000)]
    assert all(set(old) & set(new) for old, new in zip(before, after, strict=True))
    assert all(old == new for old, new in zip(before, after, strict=True) if IDS[-1] not in old)
    assert pair(policy, 1, IDS[:1]) == IDS[:1]


def test_affinity_holds_until_the_objective_is_missed() -> None:
    policy = DualMap()
    first, second = (IDS.index(worker) for worker in pair(policy, 1))
    waits = [0.0] * 8
    waits[second] = 4.9
    choice = policy.choose(seen(1, {second: 960}, wait_s=waits))
    assert (choice.chosen, choice.mode, choice.adjusted) == (second, "exploit", ())  # 4.94 s
    waits[second] = 5.1
    choice = policy.choose(seen(1, {second: 960}, wait_s=waits))
    assert (choice.chosen, choice.mode) == (first, "explore")
    assert choice.adjusted == (f"rebalanced: {IDS[second]} would start in 5.14 s, past 5 s; {IDS[first]} in 1 s",)
    waits[first] = 4.5
    assert policy.choose(seen(1, {second: 960}, wait_s=waits)).chosen == second  # late there too, and later


def test_a_holder_outside_the_pair_is_not_used() -> None:
    policy = DualMap()
    own = {IDS.index(worker) for worker in pair(policy, 1)}
    outside = next(slot for slot in range(8) if slot not in own)
    assert policy.choose(seen(1, {outside: 960})).chosen in own


def test_a_prompt_shorter_than_a_block_goes_where_it_starts_first() -> None:
    waits = [0.5, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3, 0.4]
    short = replace(sight([0] * 8, prompt=30, wait_s=waits), hashes=b"")
    assert DualMap().choose(short).chosen == 4


def test_a_prefix_that_too_many_share_is_hashed_longer_until_it_cools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dualmap_module, "RECENT", 64)
    policy = DualMap()

    def book(hashes: bytes) -> None:
        request = replace(seen(0), hashes=hashes)
        policy.booked(request, policy.choose(request), Work(0, 1000, 1000, 10))

    shared, apart = path(1, 1), iter(range(10, 10_000))
    for number in range(64):  # a third of all share their first block
        tail = path(next(apart), 14)
        book((shared if number % 3 == 0 else path(next(apart), 1)) + tail)
    hashed = policy._prefixes(shared + path(next(apart), 14))
    assert len(hashed) == 2
    for number in range(64):  # an eighth is not less than an eighth
        book(shared + path(next(apart), 14) if number % 8 == 0 else path(next(apart), 15))
    assert len(policy._prefixes(shared + path(next(apart), 14))) == 2
    for number in range(128):
        book(shared + path(next(apart), 14) if number % 32 == 0 else path(next(apart), 15))
    assert len(policy._prefixes(shared + path(next(apart), 14))) == 1
    assert len(policy._counts) <= 2 * 64
