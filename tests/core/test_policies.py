"""Names, ties, and the baselines by hand-worked cases of their sources' rules."""

from __future__ import annotations

import pytest
from sights import sight

from prebled.core.baselines import CacheAware, Dynamo, LeastLoaded, LMetric, RoundRobin
from prebled.core.policies import POLICIES, make_policy
from prebled.errors import SettingsError
from prebled.settings import CoreSettings


def test_names() -> None:
    assert set(POLICIES) == {
        "e2", "e2-paper", "round-robin", "least-loaded", "cache-aware", "dynamo", "lmetric", "dualmap",
    }  # fmt: skip
    assert next(iter(POLICIES)) == "e2"
    assert all(make_policy(name, CoreSettings()).name == name for name in POLICIES)
    with pytest.raises(SettingsError, match=r"'guess'.*e2.*least-loaded.*round-robin"):
        make_policy("guess", CoreSettings())


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"dualmap"}))
def test_ties_go_to_the_one_booked_longest_ago_then_to_the_lower_slot(name: str) -> None:
    policy = make_policy(name, CoreSettings())
    assert policy.choose(sight([0] * 4, booked=[5, 2, 9, 2])).chosen == 1


def test_sums_in_another_order_still_tie() -> None:
    assert LeastLoaded().choose(sight([0] * 3, wait_s=[0.1, 0.1, 0.1 + 1e-15], booked=[3, 2, 1])).chosen == 2


def test_least_loaded_does_not_look_at_prefixes() -> None:
    assert LeastLoaded().choose(sight([960, 0, 0], wait_s=[0.3, 0.2, 0.1])).chosen == 2
    assert LeastLoaded().choose(sight([0, 0], wait_s=[0.1, 0.1], decode_s=[0.2, 0.1])).chosen == 1


def test_round_robin_takes_the_one_booked_longest_ago() -> None:
    assert RoundRobin().choose(sight([960, 0, 0], wait_s=[0.0, 9.0, 0.1], booked=[7, 5, 6])).chosen == 1


@pytest.mark.parametrize(
    ("cached", "requests", "mode", "chosen"),
    [
        ([0, 320], [0, 9], "exploit", 1),  # 0.32 of the prompt match
        ([0, 256], [0, 9], "explore", 0),  # 0.256 do not
        ([0, 960], [10, 74], "exploit", 1),  # 64 more: not more than 64
        ([0, 960], [10, 75], "explore", 0),  # 65 more, and over 1.5 times as many
        ([0, 960], [140, 210], "exploit", 1),  # 70 more, but just 1.5 times as many
        ([640, 640], [9, 0], "exploit", 0),  # any of the best
    ],
)
def test_cache_aware_matches_unless_imbalanced(
    cached: list[int], requests: list[float], mode: str, chosen: int
) -> None:
    choice = CacheAware().choose(sight(cached, requests=requests))
    assert (choice.mode, choice.chosen) == (mode, chosen)
    assert bool(choice.adjusted) == (cached[1] > 300 and chosen == 0 and cached[0] == 0)


def test_dynamo_adds_prefill_and_decode_blocks() -> None:
    seen = sight([640, 0], prompt=1280, waiting_tokens=[640, 0], kv_tokens=[1280, 640])
    choice = Dynamo().choose(seen)
    # w0: 10 waiting + 10 to prefill + 20 + 20 that decode; w1: 20 to prefill + 10 + 20
    assert choice.total_s.tolist() == [60, 50]
    assert choice.chosen == 1
    assert Dynamo(prefill_load_scale=0).choose(seen).total_s.tolist() == [40, 30]


def test_lmetric_multiplies_prefill_tokens_with_requests() -> None:
    choice = LMetric().choose(sight([900, 0, 0], waiting_tokens=[400, 0, 0], requests=[3, 1, 0]))
    assert choice.total_s.tolist() == [500 * 4, 1000 * 2, 1000 * 1]
    assert (choice.chosen, choice.mode) == (2, "explore")
    assert LMetric().choose(sight([900, 0], waiting_tokens=[0, 0], requests=[3, 0])).mode == "exploit"
