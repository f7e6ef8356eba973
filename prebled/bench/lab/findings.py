"""What the outcomes of a campaign mean: who is best where, by how much, and how far seeds differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, fsum, log

import msgspec

from prebled.bench.lab.campaign import OURS, ROUND_ROBIN, CellResult
from prebled.bench.lab.runs import Outcome

METRICS = ("ttft_mean", "ttft_p99", "e2e_mean", "e2e_p99")

LEVEL = 1.02
"""Within this factor of the best counts as best."""

WORST = 1.10
"""Beyond this factor of the best counts as a loss."""


class Standing(msgspec.Struct, frozen=True):
    """`e2` in one cell at one load by one metric. `ratio`: to the best policy, 1.0 where it is the best itself."""

    case: str
    workers: int
    seed: int
    load: float
    metric: str
    ratio: float
    best: str
    is_held_out: bool


class Factor(msgspec.Struct, frozen=True):
    """Round robin over `e2` at 95 % of round robin's own capacity, by seeds."""

    case: str
    workers: int
    e2e_mean: list[float]
    e2e_p99: list[float]


def standings(results: Sequence[CellResult]) -> list[Standing]:
    """`e2` in every cell, at every load, by every metric."""
    found = []
    for result in results:
        cell = result.cell
        for load, outcomes in result.grid.items():
            for metric in METRICS:
                figures = {name: getattr(outcome, metric) for name, outcome in outcomes.items()}
                best = min(figures, key=lambda name: (figures[name], name != OURS))
                ratio = figures[OURS] / figures[best] if figures[best] else 1.0
                found.append(
                    Standing(cell.case.name, cell.workers, cell.seed, load, metric, ratio, best, cell.case.is_held_out)
                )
    return found


def share_best(found: Iterable[Standing]) -> float:
    """Share of standings that are best, or within `LEVEL` of it."""
    ratios = [standing.ratio for standing in found]
    return sum(ratio <= LEVEL for ratio in ratios) / len(ratios) if ratios else 0.0


def against_round_robin(results: Sequence[CellResult]) -> list[tuple[CellResult, str, float]]:
    """At the lowest load: `e2` over round robin, by metric."""
    found = []
    for result in results:
        outcomes = result.grid[min(result.grid)]
        if ROUND_ROBIN in outcomes:
            for metric in METRICS:
                other = getattr(outcomes[ROUND_ROBIN], metric)
                found.append((result, metric, getattr(outcomes[OURS], metric) / other if other else 1.0))
    return found


def factors(results: Sequence[CellResult]) -> list[Factor]:
    """By case and worker count."""
    found: dict[tuple[str, int], Factor] = {}
    for result in results:
        if not result.at_round_robin:
            continue
        key = (result.cell.case.name, result.cell.workers)
        factor = found.setdefault(key, Factor(*key, [], []))
        theirs, ours = result.at_round_robin[ROUND_ROBIN], result.at_round_robin[OURS]
        factor.e2e_mean.append(theirs.e2e_mean / ours.e2e_mean)
        factor.e2e_p99.append(theirs.e2e_p99 / ours.e2e_p99)
    return list(found.values())


def over_best_rival(limits: dict[str, float]) -> float:
    """`e2` over the best of the others."""
    best = max(limit for name, limit in limits.items() if name != OURS)
    return limits[OURS] / best if best else float("inf")


def geometric_mean(values: Iterable[float]) -> float:
    """1.0 for none."""
    logs = [log(value) for value in values if 0 < value < float("inf")]
    return exp(fsum(logs) / len(logs)) if logs else 1.0


def bases(results: Sequence[CellResult]) -> list[CellResult]:
    """Those cells whose capacities were searched for: one for each case and worker count."""
    return [result for result in results if result.curves]


def slowest_decision_us(results: Sequence[CellResult]) -> tuple[float, Outcome]:
    """The highest p99 of `e2`'s decisions, and where."""
    ours = [outcomes[OURS] for result in results for outcomes in result.grid.values()]
    worst = max(ours, key=lambda outcome: outcome.decide_p99_us)
    return worst.decide_p99_us, worst
