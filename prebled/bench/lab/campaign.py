"""What the lab runs: capacities, the grid of loads, round robin at its own limit, and the parts of E2 one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import msgspec

from prebled.bench.lab.cases import Case
from prebled.bench.lab.crew import Crew
from prebled.bench.lab.runs import Outcome, Run, Setup
from prebled.bench.lab.search import highest
from prebled.core.policies import POLICIES
from prebled.errors import SettingsError

LOADS = (0.5, 0.8, 1.0)
"""Shares of the best policy's capacity."""

PRECISION = 0.03
"""Of capacities and goodputs."""

GOODPUT_STRIDES = 9
"""A goodput below 1/26 of the capacity counts as none: prompts that take longer than its limits at any rate."""

ROUND_ROBIN = "round-robin"
OURS = "e2"
AT_ROUND_ROBIN = 0.95
"""Share of round robin's own capacity at which the factors are taken."""

SETUPS = {name: Setup(name, name) for name in POLICIES}

_OFF = 1e9
_PAPER_PARTS: tuple[tuple[str, dict[str, float]], ...] = (
    ("+ L", {"paper_load": 1.0}),
    ("+ M", {"paper_eviction": 1.0}),
    ("+ P", {"paper_prefill": 1.0}),
    ("+ rebalance", {"paper_rebalance": 1.5}),
    ("+ replicate", {"paper_replicate": 2.0}),
    ("+ prefill/decode", {"paper_decode_ratio": 0.7}),
)
_NO_PARTS = {
    "paper_load": 0.0,
    "paper_eviction": 0.0,
    "paper_prefill": 0.0,
    "paper_rebalance": _OFF,
    "paper_replicate": _OFF,
    "paper_decode_ratio": _OFF,
}


def paper_parts() -> list[Setup]:
    """E2 as in the paper, one part after another: exploit only, ..., all with local priority groups."""
    core = dict(_NO_PARTS)
    setups = [Setup("exploit only", "e2-paper", dict(core), "fcfs")]
    for label, change in _PAPER_PARTS:
        core |= change
        setups.append(Setup(label, "e2-paper", dict(core), "fcfs"))
    return [*setups, Setup("+ local groups", "e2-paper", dict(core), "groups")]


def own_parts() -> list[Setup]:
    """`e2` with one term taken out at a time."""
    return [
        Setup("e2", OURS),
        Setup("price 1", OURS, {"e2_base_price": 0.0, "e2_backlog_price": 0.0}),
        Setup("no backlog", OURS, {"e2_backlog_price": 0.0}),
        Setup("no sharing", OURS, {"e2_sharing": 0.0}),
        Setup("no decode", OURS, {"e2_decode": 0.0, "e2_waiting": 0.0}),
        Setup("no output", OURS, {"e2_output": 0.0}),
        Setup("no overtaking", OURS, {"e2_overtaking": 0.0, "e2_overtaken": 0.0}),
        Setup("fcfs queue", OURS, {}, "fcfs"),
    ]


class Cell(msgspec.Struct, frozen=True):
    """One case on so many workers under one seed; what is compared is compared within it."""

    case: Case
    workers: int
    seed: int


class CellResult(msgspec.Struct, frozen=True):
    """`capacity` and `goodput`: requests a second by policy. `grid`: by load, then policy. `at_round_robin`: round
    robin and ours at 95 % of round robin's capacity, empty where that is not known. `curves`: by policy, all rates that
    were tried for its capacity and goodput and replayed to the end, upwards; empty where another seed's are used.
    `parts`: the ablations at 80 % of the best capacity, by label; empty but for one seed and worker count."""

    cell: Cell
    capacity: dict[str, float]
    goodput: dict[str, float]
    grid: dict[float, dict[str, Outcome]]
    at_round_robin: dict[str, Outcome]
    curves: dict[str, list[Outcome]]
    parts: dict[str, Outcome] = {}


class Plan(msgspec.Struct, frozen=True):
    """`limit`: requests of a case, None for all. `seeds`: capacities are searched for with the first one and used for
    the others. `parts_on`: worker count on which the ablations are run."""

    workers: tuple[int, ...] = (4, 8)
    seeds: tuple[int, ...] = (0,)
    limit: int | None = 2000
    policies: tuple[str, ...] = tuple(POLICIES)
    parts_on: int = 4
    loads: tuple[float, ...] = LOADS


def run_campaign(crew: Crew, cases: Sequence[Case], plan: Plan) -> list[CellResult]:
    """All cells. Whatever is known already is not run again."""
    bases = [Cell(case, workers, plan.seeds[0]) for case, workers in product(cases, plan.workers)]
    ours = crew.map(lambda cell: _limits(crew, plan, cell, OURS, cell.workers / 4), bases)
    found = {(cell, OURS): limits for cell, limits in zip(bases, ours, strict=True)}
    searches = [(cell, policy) for cell in bases for policy in plan.policies if policy != OURS]
    # The others' limits are looked for around ours, which saves strides.
    theirs = crew.map(
        lambda search: _limits(crew, plan, *search, found[search[0], OURS].capacity or search[0].workers / 4), searches
    )
    found |= dict(zip(searches, theirs, strict=True))
    cells = [Cell(case, workers, seed) for case, workers, seed in product(cases, plan.workers, plan.seeds)]
    return crew.map(lambda cell: _cell(crew, plan, cell, found, bases), cells)


class _Limits(msgspec.Struct, frozen=True):
    """Rate scales, and the outcomes of all rates that were tried and replayed to the end."""

    capacity: float
    goodput: float
    tried: list[Outcome]


def _limits(crew: Crew, plan: Plan, cell: Cell, policy: str, guess: float) -> _Limits:
    tried: dict[float, Outcome] = {}

    def at(scale: float, asks: Literal["capacity", "goodput"]) -> Outcome | None:
        if scale in tried:
            return tried[scale]
        outcome = crew.try_out(Run(cell.case, SETUPS[policy], cell.workers, cell.seed, scale, plan.limit, asks))
        if outcome is not None:
            tried[scale] = outcome
        return outcome

    def is_stable(scale: float) -> bool:
        outcome = at(scale, "capacity")
        return outcome is not None and outcome.is_stable

    def is_good(scale: float) -> bool:
        outcome = at(scale, "goodput")
        return outcome is not None and outcome.is_good

    capacity = highest(is_stable, guess, precision=PRECISION)
    goodput = highest(is_good, capacity or guess, precision=PRECISION, most_strides=GOODPUT_STRIDES)
    return _Limits(capacity, goodput, [tried[scale] for scale in sorted(tried)])


def _cell(
    crew: Crew, plan: Plan, cell: Cell, found: dict[tuple[Cell, str], _Limits], bases: Sequence[Cell]
) -> CellResult:
    base = next(base for base in bases if (base.case, base.workers) == (cell.case, cell.workers))
    limits = {policy: found[base, policy] for policy in plan.policies}
    best = max(limit.capacity for limit in limits.values())
    if not best:
        raise SettingsError(
            f"case {cell.case.name!r}: no policy keeps up with it at any rate tried, with {cell.workers} workers and "
            f"{plan.limit or 'all'} requests",
            param="limit",
        )

    def at(setup: Setup, scale: float) -> Outcome:
        return crew.run(Run(cell.case, setup, cell.workers, cell.seed, scale, plan.limit))

    grid = {load: {name: at(SETUPS[name], round(load * best, 6)) for name in plan.policies} for load in plan.loads}
    at_round_robin = {}
    if ROUND_ROBIN in limits:
        scale = round(AT_ROUND_ROBIN * limits[ROUND_ROBIN].capacity, 6)
        at_round_robin = {name: at(SETUPS[name], scale) for name in (ROUND_ROBIN, OURS)} if scale else {}
    parts = {}
    if cell.workers == plan.parts_on and cell.seed == plan.seeds[0]:
        parts = {setup.label: at(setup, round(0.8 * best, 6)) for setup in (*paper_parts(), *own_parts())}
    per_scale = next(iter(grid[plan.loads[0]].values()))
    requests_per_s = per_scale.rate / per_scale.rate_scale
    return CellResult(
        cell,
        {name: limit.capacity * requests_per_s for name, limit in limits.items()},
        {name: limit.goodput * requests_per_s for name, limit in limits.items()},
        grid,
        at_round_robin,
        {name: limit.tried for name, limit in limits.items()} if cell == base else {},
        parts,
    )
