"""What the outcomes of a campaign mean: who is best where, by how much, and how far seeds differ.

A *comparison* is one case, worker count, load and metric. A policy's figure in it is the geometric mean over the seeds;
what one seed alone would have shown is kept beside it, for a mean hides luck in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from math import inf
from statistics import geometric_mean as positive_mean

import msgspec

from prebled.bench.lab.campaign import OURS, ROUND_ROBIN, CellResult
from prebled.bench.lab.runs import Outcome

METRICS = ("ttft_mean", "ttft_p99", "e2e_mean", "e2e_p99")

LEVEL = 1.02
"""Within this factor of the best counts as best."""

WORST = 1.10
"""Beyond this factor of the best counts as a loss."""


class Standing(msgspec.Struct, frozen=True):
    """`e2` in one comparison. `by_seed`: figures, in seconds, by seed, then policy."""

    case: str
    workers: int
    load: float
    metric: str
    is_held_out: bool
    by_seed: dict[int, dict[str, float]]

    @property
    def figures(self) -> dict[str, float]:
        """By policy: the geometric mean over the seeds; 0.0 if it is 0.0 under any."""
        seeds = list(self.by_seed.values())
        values = {name: [figures[name] for figures in seeds] for name in seeds[0]}
        return {name: geometric_mean(per_seed) if all(per_seed) else 0.0 for name, per_seed in values.items()}

    @property
    def best(self) -> str:
        """The policy with the lowest figure; of equals, ours."""
        figures = self.figures
        return min(figures, key=lambda name: (figures[name], name != OURS))

    @property
    def rival(self) -> str:
        """The best of the other policies; ours where there is none."""
        figures = self.figures
        return min((name for name in figures if name != OURS), key=lambda name: figures[name], default=OURS)

    @property
    def ratio(self) -> float:
        """`e2` over the best policy: 1.0 where it is the best itself."""
        return self.over(self.best)

    def over(self, policy: str) -> float:
        """`e2` over a policy: above 1.0 it is the slower one. 1.0 if the policy's figure is 0.0."""
        return _over(self.figures, policy)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest of `e2` over `rival` in a seed alone: the same rival in all of them."""
        rival = self.rival
        ratios = [_over(figures, rival) for figures in self.by_seed.values()]
        return min(ratios), max(ratios)

    def alone(self, seed: int) -> Standing:
        """As if this had been the only seed."""
        return msgspec.structs.replace(self, by_seed={seed: self.by_seed[seed]})


class Factor(msgspec.Struct, frozen=True):
    """Round robin over `e2` at 95 % of round robin's own capacity, by seeds."""

    case: str
    workers: int
    e2e_mean: list[float]
    e2e_p99: list[float]


def standings(results: Iterable[CellResult]) -> list[Standing]:
    """`e2` in every comparison."""
    return [
        _standing(cells, load, metric)
        for cells in _by_place(results)
        for load, metric in product(cells[0].grid, METRICS)
    ]


def _standing(cells: Sequence[CellResult], load: float, metric: str) -> Standing:
    """Of the cells of one case and worker count: a cell for each seed."""
    by_seed = {
        result.cell.seed: {name: getattr(outcome, metric) for name, outcome in result.grid[load].items()}
        for result in cells
    }
    case, workers = cells[0].cell.case, cells[0].cell.workers
    return Standing(case.name, workers, load, metric, case.is_held_out, by_seed)


def alone(found: Sequence[Standing]) -> dict[int, list[Standing]]:
    """What each seed alone would have shown."""
    seeds = sorted({seed for standing in found for seed in standing.by_seed})
    return {seed: [standing.alone(seed) for standing in found if seed in standing.by_seed] for seed in seeds}


def share_best(found: Iterable[Standing]) -> float:
    """Share of standings that are best, or within `LEVEL` of it."""
    ratios = [standing.ratio for standing in found]
    return sum(ratio <= LEVEL for ratio in ratios) / len(ratios) if ratios else 0.0


def losses(found: Iterable[Standing]) -> list[Standing]:
    """Those beyond `WORST`, the worst first."""
    lost = [standing for standing in found if standing.ratio > WORST]
    return sorted(lost, key=lambda standing: -standing.ratio)


def against_round_robin(found: Sequence[Standing]) -> list[Standing]:
    """Those at the lowest load in which round robin takes part, the slowest against it first."""
    lowest = min((standing.load for standing in found), default=0.0)
    low = [standing for standing in found if standing.load == lowest and ROUND_ROBIN in standing.figures]
    return sorted(low, key=lambda standing: -standing.over(ROUND_ROBIN))


def factors(results: Iterable[CellResult]) -> list[Factor]:
    """By case and worker count."""
    found = []
    for cells in _by_place(result for result in results if result.at_round_robin):
        pairs = [(result.at_round_robin[ROUND_ROBIN], result.at_round_robin[OURS]) for result in cells]
        means = [theirs.e2e_mean / ours.e2e_mean for theirs, ours in pairs]
        p99s = [theirs.e2e_p99 / ours.e2e_p99 for theirs, ours in pairs]
        found.append(Factor(cells[0].cell.case.name, cells[0].cell.workers, means, p99s))
    return found


def _by_place(results: Iterable[CellResult]) -> list[list[CellResult]]:
    """The cells of each case and worker count together."""
    places: dict[tuple[str, int], list[CellResult]] = {}
    for result in results:
        places.setdefault((result.cell.case.name, result.cell.workers), []).append(result)
    return list(places.values())


def over_best_rival(limits: dict[str, float]) -> float:
    """`e2` over the best of the others, infinite where none of them has a limit."""
    best = max(limit for name, limit in limits.items() if name != OURS)
    return limits[OURS] / best if best else inf


def over_best_rivals(places: Iterable[dict[str, float]]) -> float:
    """`e2` over the best rival of each place, whichever that is: the geometric mean, without places where either limit
    is 0. `places`: the limits of each case and worker count, by policy."""
    return geometric_mean(over_best_rival(limits) for limits in places)


def over_rivals(places: Sequence[dict[str, float]]) -> dict[str, float]:
    """`e2` over each of the others: the geometric mean, without places where either limit is 0; nothing of a rival for
    which none is left. The lowest is that over the best rival of all places together."""
    found = {}
    for rival in places[0]:
        pairs = [(limits[OURS], limits[rival]) for limits in places]
        ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
        if ratios and rival != OURS:
            found[rival] = geometric_mean(ratios)
    return found


def without_limit(places: Iterable[dict[str, float]]) -> int:
    """Places where `e2` has none and a rival has: no mean tells of them."""
    return sum(not limits[OURS] and any(limits.values()) for limits in places)


def geometric_mean(values: Iterable[float]) -> float:
    """Of those that are neither 0 nor infinite; 1.0 for none."""
    counted = [value for value in values if 0 < value < inf]
    return positive_mean(counted) if counted else 1.0


def _over(figures: dict[str, float], policy: str) -> float:
    return figures[OURS] / figures[policy] if figures[policy] else 1.0


def bases(results: Sequence[CellResult]) -> list[CellResult]:
    """Those cells whose capacities were searched for: one for each case and worker count."""
    return [result for result in results if result.curves]


def slowest_decision_us(results: Sequence[CellResult]) -> tuple[float, Outcome]:
    """The highest p99 of `e2`'s decisions, and where."""
    ours = [outcomes[OURS] for result in results for outcomes in result.grid.values()]
    worst = max(ours, key=lambda outcome: outcome.decide_p99_us)
    return worst.decide_p99_us, worst
