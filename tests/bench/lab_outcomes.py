"""Outcomes and results of the lab, made by hand."""

from __future__ import annotations

from prebled.bench.lab.campaign import Cell, CellResult
from prebled.bench.lab.cases import Case
from prebled.bench.lab.runs import Outcome


def outcome(label: str = "e2", *, ttft: float = 1.0, e2e: float = 2.0, key: str = "", **other: float) -> Outcome:
    """Means as given, p99s three times as long."""
    figures: dict[str, float] = {
        "workers": 4,
        "seed": 0,
        "rate_scale": 1.0,
        "requests": 100,
        "failed": 0,
        "rate": 10.0,
        "span_s": 1000.0,
        "ttft_mean": ttft,
        "ttft_p99": 3 * ttft,
        "e2e_mean": e2e,
        "e2e_p99": 3 * e2e,
        "in_time": 1.0,
        "hit_ratio": 0.5,
        "imbalance": 1.0,
        "decide_p50_us": 30.0,
        "decide_p99_us": 90.0,
        "wall_s": 0.5,
    }
    return Outcome(key=key or label, case="made", label=label, **{**figures, **other})  # type: ignore[arg-type]


def result(
    grid: dict[float, dict[str, Outcome]],
    *,
    case: str = "made",
    workers: int = 4,
    seed: int = 0,
    is_held_out: bool = False,
    capacity: dict[str, float] | None = None,
    at_round_robin: dict[str, Outcome] | None = None,
    parts: dict[str, Outcome] | None = None,
) -> CellResult:
    """Of one cell; the curves are those of the grid, for the first seed."""
    policies = list(next(iter(grid.values())))
    limits = capacity or dict.fromkeys(policies, 10.0)
    return CellResult(
        Cell(Case(case, f"workload:{case}", is_held_out=is_held_out), workers, seed),
        limits,
        {name: limit / 2 for name, limit in limits.items()},
        grid,
        at_round_robin or {},
        {name: [at[name] for at in grid.values()] for name in policies} if seed == 0 else {},
        parts or {},
    )
