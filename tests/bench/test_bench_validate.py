"""What of a comparison with real workers is decided without them: which requests race, and what is close enough."""

from __future__ import annotations

import msgspec
import pytest
from replay_traces import request, trace

from prebled.bench.validate import Costs, Medians, Plan, Round, Together, Validation, check_plan
from prebled.bench.validate_compare import CachedTokens, Outcome, cached, shared_blocks, sort_out
from prebled.core.cost import profile
from prebled.errors import SettingsError

# Two come at once with the same beginning, a third long after them, a fourth with nothing in common.
TRACE = trace(
    request(0.0, 12, 1, "ab"),
    request(0.1, 12, 1, "ab"),
    request(5.0, 12, 1, "ab"),
    request(5.1, 12, 1, "xy"),
)
ALONE = Outcome([1.0] * 4, [1.0] * 4, [0, 0, 8, 0], ["w0", "w0", "w0", "w0"])


def moved(outcome: Outcome, number: int, *, cached_tokens: int | None = None, worker: str | None = None) -> Outcome:
    """The same with one request different."""
    tokens, workers = outcome.cached_tokens.copy(), outcome.workers.copy()
    if cached_tokens is not None:
        tokens[number] = cached_tokens
    if worker is not None:
        workers[number] = worker
    return msgspec.structs.replace(outcome, cached_tokens=tokens, workers=workers)


def test_requests_that_share_a_prefix_and_are_computed_together_are_a_race() -> None:
    assert sort_out(TRACE, ALONE, ALONE) == ["raced", "raced", "certain", "certain"]


def test_on_different_workers_there_is_no_race_but_less_to_find() -> None:
    apart = moved(ALONE, 1, worker="w1")
    assert sort_out(TRACE, apart, apart) == ["certain"] * 4
    elsewhere = moved(apart, 2, worker="w2")
    assert sort_out(TRACE, apart, elsewhere) == ["certain", "certain", "placed otherwise", "certain"]


def test_workers_may_have_other_names() -> None:
    named = msgspec.structs.replace(ALONE, workers=["w7"] * 4)
    assert sort_out(TRACE, named, ALONE) == sort_out(TRACE, ALONE, ALONE)


def test_only_what_no_race_decides_has_to_be_equal() -> None:
    assert cached(TRACE, moved(ALONE, 1, cached_tokens=8), ALONE).certain_unequal == []
    found = cached(TRACE, moved(ALONE, 2, cached_tokens=4), ALONE)
    assert found == CachedTokens(4, 8, 4, 3, 2, [2], 0)


@pytest.mark.parametrize("common", range(7))
def test_shared_blocks_end_where_paths_part(common: int) -> None:
    one = request(0.0, 24, 1, range(6)).path
    other = request(0.0, 24, 1, [*range(common), *["other"] * (6 - common)]).path
    assert shared_blocks(one, other) == shared_blocks(other, one) == common
    assert shared_blocks(one, other[: 8 * 3]) == min(common, 3)
    assert shared_blocks(one, b"") == 0


def test_the_rounds_of_each_policy_must_be_close_together_and_no_request_wrong() -> None:
    costs = Costs(profile("tiny-cpu"), 0.001)
    right = CachedTokens(8, 8, 4, 4, 2, [], 0)
    medians = Medians(1.0, 1.0)

    def one(policy: str, ttft: float, e2e: float, found: CachedTokens = right) -> Round:
        return Round(policy, 1.0, 0.4, medians, medians, ttft, e2e, found, costs, costs, 0.0)

    plan = Plan(policies=("e2", "dynamo"))
    apart = [one("e2", 0.25, 0.0), one("e2", -0.2, 0.21), one("dynamo", 0.0, 0.15)]
    assert Validation(plan, apart).together == [Together("e2", 2, 0.0, 0.1), Together("dynamo", 1, 0.0, 0.15)]
    assert not Validation(plan, apart).is_valid  # close on the whole, but no round is
    assert Validation(plan, [*apart, one("e2", -0.15, 0.1)]).is_valid
    assert not Validation(plan, [one("e2", 0.2, 0.0), one("e2", 0.11, 0.0), one("dynamo", 0.0, 0.0)]).is_valid
    assert not Validation(plan, [one("e2", 0.0, 0.0), one("dynamo", 0.0, -0.16)]).is_valid
    assert not Validation(plan, [one("e2", 0.0, 0.0)]).is_valid
    wrong = CachedTokens(4, 8, 4, 3, 2, [2], 0)
    assert not Validation(plan, [one("e2", 0.0, 0.0), one("dynamo", 0.0, 0.0), one("e2", 1.0, 1.0, wrong)]).is_valid


@pytest.mark.parametrize(
    ("plan", "value"),
    [
        (Plan(policies=("e3",)), "e3"),
        (Plan(queue_policy="lpm"), "lpm"),
        (Plan(busy=1.0), "1.0"),
        (Plan(kv_tokens=1000), "1000"),
    ],
)
def test_bad_plans_are_refused_by_value(plan: Plan, value: str) -> None:
    with pytest.raises(SettingsError, match=value):
        check_plan(plan)
