"""What outcomes mean: comparisons over seeds and under each alone, round robin, limits and decisions."""

from __future__ import annotations

from math import sqrt

import pytest
from lab_outcomes import outcome, result

from prebled.bench.lab import findings
from prebled.bench.lab.campaign import CellResult
from prebled.bench.lab.findings import Standing


def seeds(*ttfts: dict[str, float], load: float = 0.5, case: str = "made", workers: int = 4) -> list[CellResult]:
    """One cell for each seed: the mean TTFT by policy; the E2Es are all the same."""
    return [
        result(
            {load: {name: outcome(name, ttft=ttft) for name, ttft in by_policy.items()}},
            case=case,
            workers=workers,
            seed=seed,
        )
        for seed, by_policy in enumerate(ttfts)
    ]


def ttft_mean(results: list[CellResult]) -> Standing:
    """The only standing by that metric."""
    (standing,) = (standing for standing in findings.standings(results) if standing.metric == "ttft_mean")
    return standing


# --- comparisons ---


def test_standings_are_ratios_to_the_best() -> None:
    at = {"round-robin": outcome(ttft=2.0), "e2": outcome(ttft=1.1, e2e=2.0), "lmetric": outcome(ttft=1.0, e2e=3.0)}
    found = {standing.metric: standing for standing in findings.standings([result({0.5: at})])}
    assert list(found) == ["ttft_mean", "ttft_p99", "e2e_mean", "e2e_p99"]
    assert (found["ttft_mean"].best, found["ttft_mean"].ratio) == ("lmetric", pytest.approx(1.1))
    assert (found["e2e_mean"].best, found["e2e_mean"].ratio) == ("e2", 1.0)  # of equals, ours
    assert found["e2e_mean"].rival == "round-robin"
    assert findings.share_best(found.values()) == 0.5
    assert findings.share_best([]) == 0.0


def test_under_one_seed_figures_are_its_own() -> None:
    found = ttft_mean(seeds({"e2": 1.3, "lmetric": 1.0}))
    assert found.figures == pytest.approx({"e2": 1.3, "lmetric": 1.0})
    assert found.spread == (pytest.approx(found.ratio), pytest.approx(1.3))
    assert found.alone(0) == found


def test_figures_are_geometric_means_over_the_seeds() -> None:
    found = ttft_mean(seeds({"e2": 1.0, "lmetric": 2.0, "dynamo": 9.0}, {"e2": 4.0, "lmetric": 1.0, "dynamo": 4.0}))
    assert found.figures == pytest.approx({"e2": 2.0, "lmetric": sqrt(2.0), "dynamo": 6.0})
    assert (found.best, found.rival, found.ratio) == ("lmetric", "lmetric", pytest.approx(sqrt(2.0)))
    assert found.over("dynamo") == pytest.approx(1 / 3)
    assert found.spread == (0.5, 4.0)  # to lmetric, which is not the best under seed 0


def test_the_spread_is_to_the_best_of_the_others() -> None:
    found = ttft_mean(seeds({"e2": 1.0, "lmetric": 1.25, "dynamo": 0.8}, {"e2": 1.0, "lmetric": 2.0, "dynamo": 8.0}))
    assert (found.best, found.ratio, found.rival) == ("e2", 1.0, "lmetric")
    assert found.spread == (0.5, 0.8)


def test_a_mean_over_seeds_hides_bad_luck() -> None:
    found = findings.standings(seeds({"e2": 1.0, "lmetric": 1.5}, {"e2": 1.5, "lmetric": 1.0}))
    assert findings.share_best(found) == 1.0
    shares = {seed: findings.share_best(group) for seed, group in findings.alone(found).items()}
    assert shares == {0: 1.0, 1: 0.5}  # the E2Es are equal


def test_a_mean_over_seeds_hides_the_luck_of_others() -> None:
    lucky = {"lmetric": 1.0, "dynamo": 4.0}, {"lmetric": 4.0, "dynamo": 1.0}
    found = ttft_mean(seeds(*({"e2": 1.5, **others} for others in lucky)))
    assert (found.best, found.ratio) == ("e2", 1.0)
    assert [(found.alone(seed).best, found.alone(seed).ratio) for seed in (0, 1)] == [
        ("lmetric", pytest.approx(1.5)),
        ("dynamo", pytest.approx(1.5)),
    ]


def test_cases_worker_counts_and_loads_are_compared_apart() -> None:
    results = [
        *seeds({"e2": 1.0, "lmetric": 2.0}, {"e2": 1.0, "lmetric": 2.0}),
        *seeds({"e2": 3.0, "lmetric": 2.0}, workers=8),
        result({load: {"e2": outcome(), "lmetric": outcome()} for load in (0.5, 0.8)}, case="new", is_held_out=True),
    ]
    found = [standing for standing in findings.standings(results) if standing.metric == "ttft_mean"]
    assert [(s.case, s.workers, s.load, s.is_held_out, s.ratio, len(s.by_seed)) for s in found] == [
        ("made", 4, 0.5, False, 1.0, 2),
        ("made", 8, 0.5, False, pytest.approx(1.5), 1),
        ("new", 4, 0.5, True, 1.0, 1),
        ("new", 4, 0.8, True, 1.0, 1),
    ]
    assert {seed: len(group) for seed, group in findings.alone(found).items()} == {0: 4, 1: 1}


def test_a_figure_of_nothing_stays_nothing() -> None:
    found = ttft_mean(seeds({"e2": 1.0, "lmetric": 0.0}, {"e2": 1.0, "lmetric": 4.0}))
    assert found.figures == {"e2": 1.0, "lmetric": 0.0}
    assert found.ratio == 1.0
    assert found.spread == (0.25, 1.0)


def test_within_two_percent_counts_as_best() -> None:
    at = {"e2": outcome(ttft=1.019, e2e=1.03), "lmetric": outcome(ttft=1.0, e2e=1.0)}
    assert findings.share_best(findings.standings([result({0.5: at})])) == 0.5


def test_losses_are_beyond_ten_percent_and_the_worst_comes_first() -> None:
    results = [
        *seeds({"e2": 1.2, "lmetric": 1.0}, case="bad"),
        *seeds({"e2": 1.09, "lmetric": 1.0}, case="fair"),
        *seeds({"e2": 1.5, "lmetric": 1.0}, {"e2": 1.5, "lmetric": 1.0}, case="worse"),
        *seeds({"e2": 1.5, "lmetric": 1.0}, {"e2": 0.7, "lmetric": 1.0}, case="lucky"),
    ]
    found = [(lost.case, lost.metric) for lost in findings.losses(findings.standings(results))]
    metrics = ("ttft_mean", "ttft_p99")
    assert found == [(case, metric) for case in ("worse", "bad") for metric in metrics]


# --- round robin ---


def test_factors_are_kept_by_seed() -> None:
    at = {"e2": outcome()}
    results = [
        result({0.5: at}, seed=seed, at_round_robin={"round-robin": outcome(e2e=3.0 * (seed + 1)), "e2": outcome()})
        for seed in range(2)
    ]
    (factor,) = findings.factors([*results, result({0.5: at}, case="other")])
    assert (factor.case, factor.workers, factor.e2e_mean, factor.e2e_p99) == ("made", 4, [1.5, 3.0], [1.5, 3.0])


def test_round_robin_is_compared_at_the_lowest_load() -> None:
    low = {"e2": outcome(ttft=0.9), "round-robin": outcome(ttft=1.0), "lmetric": outcome(ttft=0.5)}
    high = {"e2": outcome(ttft=5.0), "round-robin": outcome(ttft=1.0), "lmetric": outcome(ttft=0.5)}
    found = findings.against_round_robin(findings.standings([result({0.8: high, 0.5: low})]))
    assert [(s.load, s.metric) for s in found] == [
        (0.5, metric) for metric in ("e2e_mean", "e2e_p99", "ttft_mean", "ttft_p99")
    ]
    assert [s.over("round-robin") for s in found] == pytest.approx([1.0, 1.0, 0.9, 0.9])
    assert findings.against_round_robin(findings.standings([result({0.5: {"e2": outcome()}})])) == []
    assert findings.against_round_robin([]) == []


def test_round_robin_is_compared_over_the_seeds() -> None:
    results = seeds({"e2": 1.3, "round-robin": 1.0}, {"e2": 1.3, "round-robin": 1.69})
    ratios = {s.metric: s.over("round-robin") for s in findings.against_round_robin(findings.standings(results))}
    assert ratios["ttft_mean"] == pytest.approx(1.0)


# --- limits ---


def test_limits_are_compared_with_the_best_rival() -> None:
    assert findings.over_best_rival({"e2": 12.0, "dualmap": 10.0, "round-robin": 5.0}) == pytest.approx(1.2)
    assert findings.over_best_rival({"e2": 12.0, "dualmap": 0.0}) == float("inf")


def test_limits_are_compared_with_each_rival_over_all_places() -> None:
    places = [
        {"e2": 12.0, "dualmap": 10.0, "lmetric": 3.0},
        {"e2": 12.0, "dualmap": 5.0, "lmetric": 16.0},
    ]
    over = findings.over_rivals(places)
    assert over == {"dualmap": pytest.approx(sqrt(1.2 * 2.4)), "lmetric": pytest.approx(sqrt(4.0 * 0.75))}
    assert findings.over_best_rivals(places) == pytest.approx(sqrt(1.2 * 0.75))
    assert findings.over_best_rivals(places) < min(over.values())


def test_places_without_a_limit_are_left_out() -> None:
    places = [
        {"e2": 8.0, "dualmap": 0.0, "lmetric": 4.0, "dynamo": 0.0},
        {"e2": 9.0, "dualmap": 3.0, "lmetric": 1.0, "dynamo": 0.0},
        {"e2": 0.0, "dualmap": 2.0, "lmetric": 2.0, "dynamo": 0.0},
        {"e2": 0.0, "dualmap": 0.0, "lmetric": 0.0, "dynamo": 0.0},
    ]
    assert findings.over_rivals(places) == {"dualmap": pytest.approx(3.0), "lmetric": pytest.approx(sqrt(2.0 * 9.0))}
    assert findings.over_best_rivals(places) == pytest.approx(sqrt(2.0 * 3.0))
    assert findings.without_limit(places) == 1
    assert findings.over_rivals([places[2]]) == {}


def test_the_geometric_mean() -> None:
    assert findings.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert findings.geometric_mean([2.0, float("inf"), 0.0]) == pytest.approx(2.0)
    assert findings.geometric_mean([]) == 1.0


# --- decisions ---


def test_the_slowest_decision_is_ours() -> None:
    at = {"e2": outcome(decide_p99_us=120.0, workers=8), "lmetric": outcome(decide_p99_us=500.0)}
    slowest_us, where = findings.slowest_decision_us([result({0.5: at}), result({0.5: {"e2": outcome()}})])
    assert (slowest_us, where.workers) == (120.0, 8)
