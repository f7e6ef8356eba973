"""A run of the lab, and what came of it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal

import msgspec

from prebled.bench.lab.cases import Case
from prebled.bench.replay import Limits, ReplayResult, ReplaySettings, replay
from prebled.bench.trace import Trace
from prebled.settings import CoreSettings

GOODPUT = Limits(ttft_s=5.0, tpot_s=0.2, in_time=0.99)
"""The share of the requests that goodput asks for, and within which times."""


class Setup(msgspec.Struct, frozen=True):
    """A policy with what is changed for it. `label` names it in tables; `core`: settings that differ from the
    defaults; `queue_policy`: of the workers."""

    label: str
    policy: str
    core: dict[str, float] = {}
    queue_policy: str = "groups"


class Run(msgspec.Struct, frozen=True):
    """One replay. `limit`: requests of the case, None for all. `asks`: where the load is certainly beyond this, the
    replay is given up; whole if empty."""

    case: Case
    setup: Setup
    workers: int
    seed: int
    rate_scale: float
    limit: int | None
    asks: Literal["", "capacity", "goodput"] = ""


class Overload(msgspec.Struct, frozen=True, tag=True):
    """Of a run that was given up: of the load is known that it is beyond what was asked, and nothing else."""

    key: str
    case: str
    label: str
    workers: int


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """What came of a run. Times in seconds; `rate`: requests that arrive in a second; `span_s`: from the first arrival
    to the last (in a closed loop, where arrivals follow ends: of the whole replay); `in_time`: share of the requests
    within the limits of goodput, 0.0 where any was refused."""

    key: str
    case: str
    label: str
    workers: int
    seed: int
    rate_scale: float
    requests: int
    failed: int
    rate: float
    span_s: float
    ttft_mean: float
    ttft_p99: float
    e2e_mean: float
    e2e_p99: float
    in_time: float
    hit_ratio: float
    imbalance: float
    decide_p50_us: float
    decide_p99_us: float
    wall_s: float

    @property
    def is_stable(self) -> bool:
        """Whether the load is within capacity: mean TTFT below 10 s and 4 % of the span of arrivals."""
        return not self.failed and self.ttft_mean < ttft_limit_s(self.span_s)

    @property
    def is_good(self) -> bool:
        """Whether 99 % of the requests are in time."""
        return not self.failed and self.in_time >= GOODPUT.in_time


@lru_cache(maxsize=4)
def load(case: Case, seed: int, limit: int | None) -> Trace:
    """The trace of a case, kept by the process for the runs that follow."""
    return case.trace(seed, limit)


def ttft_limit_s(span_s: float) -> float:
    """A load is stable if its mean TTFT is below this: 10 s, and 4 % of the span of arrivals."""
    return min(10.0, 0.04 * span_s)


def carry_out(run: Run) -> Outcome:
    """Replay. Raises SettingsError for what cannot be, BeyondLimits if it was given up."""
    trace = load(run.case, run.seed, run.limit)
    arrivals = [request.arrival_s for request in trace.requests]
    # In a closed loop arrivals follow ends: its span is known at its end.
    span_s = float("inf") if trace.is_closed_loop else (max(arrivals) - min(arrivals)) / run.rate_scale
    limits = {"": None, "capacity": Limits(ttft_mean_s=ttft_limit_s(span_s)), "goodput": GOODPUT}[run.asks]
    core = msgspec.structs.replace(CoreSettings(), **run.setup.core)
    settings = ReplaySettings(core=core, queue_policy=run.setup.queue_policy, limits=limits)
    result = replay(
        trace,
        run.setup.policy,
        workers=run.workers,
        profile=run.case.profile,
        kv_tokens=run.case.kv_tokens,
        rate_scale=run.rate_scale,
        settings=settings,
    )
    report = result.report
    if trace.is_closed_loop:
        span_s = report.sim_seconds
    return Outcome(
        key=key_of(run),
        case=run.case.name,
        label=run.setup.label,
        workers=run.workers,
        seed=run.seed,
        rate_scale=run.rate_scale,
        requests=report.requests,
        failed=report.failed,
        rate=report.requests / span_s if span_s else 0.0,
        span_s=span_s,
        ttft_mean=report.ttft_s.mean,
        ttft_p99=report.ttft_s.p99,
        e2e_mean=report.e2e_s.mean,
        e2e_p99=report.e2e_s.p99,
        in_time=0.0 if report.failed else _share_in_time(trace, result),
        hit_ratio=report.hit_ratio,
        imbalance=report.uncached_max_over_mean,
        decide_p50_us=report.decide_us.p50,
        decide_p99_us=report.decide_us.p99,
        wall_s=report.wall_seconds,
    )


def _share_in_time(trace: Trace, result: ReplayResult) -> float:
    """Of a replay in which every request was completed."""
    tpots = iter(result.tpot_s)
    late = 0
    for request, ttft_s in zip(trace.requests, result.ttft_s, strict=True):
        late += GOODPUT.is_late(ttft_s, next(tpots) if request.output_tokens > 1 else 0.0)
    return 1 - late / len(trace.requests)


def key_of(run: Run) -> str:
    """Names the run."""
    return hashlib.sha256(msgspec.json.encode(run)).hexdigest()[:24]
