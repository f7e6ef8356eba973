"""What a replay measured, and its report as `prebled replay --json` prints it.

All times are seconds of the replay, but for `wall_seconds` and `decide_us`, which are of the machine that ran it. Sums
are exact and percentiles interpolate linearly, so that the figures are the same on every machine.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import fsum

import msgspec

from prebled.core.decisions import Placed

DIGITS = 6
"""Decimals of seconds in a report."""


class Spread(msgspec.Struct, frozen=True):
    """Of one figure over requests; zeros where there are none."""

    mean: float
    p50: float
    p90: float
    p99: float


class Decisions(msgspec.Struct, frozen=True):
    """How many placements were of each mode, and how many were changed by rebalancing or replication."""

    exploit: int
    explore: int
    rebalanced: int
    replicated: int


class DecideTimes(msgspec.Struct, frozen=True):
    """Microseconds of a decision."""

    p50: float
    p99: float


class Report(msgspec.Struct, frozen=True):
    """One replay. `ttft_s`: from arrival to the first token; `tpot_s`: from there to the last, for each further token;
    `e2e_s`: from arrival to the last; `queue_s`: from arrival until the prompt began to be computed. `hit_ratio`:
    prompt tokens taken from cache over prompt tokens, of the completed. `uncached_max_over_mean`: prefilled tokens of
    the busiest worker over the mean."""

    trace: str
    policy: str
    workers: int
    profile: str
    rate_scale: float
    requests: int
    completed: int
    failed: int
    sim_seconds: float
    wall_seconds: float
    ttft_s: Spread
    tpot_s: Spread
    e2e_s: Spread
    queue_s: Spread
    hit_ratio: float
    uncached_max_over_mean: float
    decisions: Decisions
    decide_us: DecideTimes


class ReplayResult(msgspec.Struct, frozen=True):
    """The report, and what it sums up: seconds per completed request, in the order of the trace (`tpot_s` only of those
    with more than one output token). `failures`: refusals by code. `retractions`: how often a run lost its KV.
    `cached_tokens`: of each completed request's prompt; `workers`: the number of the one that ended it. `busy_s`: how
    many seconds each worker was computing."""

    report: Report
    ttft_s: list[float]
    tpot_s: list[float]
    e2e_s: list[float]
    queue_s: list[float]
    failures: dict[str, int]
    retractions: int
    cached_tokens: list[int]
    workers: list[int]
    busy_s: list[float]


def spread(values: Sequence[float]) -> Spread:
    """Mean and percentiles, rounded."""
    if not values:
        return Spread(0.0, 0.0, 0.0, 0.0)
    ordered = sorted(values)
    figures = (fsum(ordered) / len(ordered), *(percentile(ordered, share) for share in (0.5, 0.9, 0.99)))
    return Spread(*(round(figure, DIGITS) for figure in figures))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, at least one; between two of them in proportion."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def decide_times(nanoseconds: array[int]) -> DecideTimes:
    """Of the decisions measured."""
    ordered = sorted(nanoseconds)
    return DecideTimes(*(round(percentile(ordered, share) / 1000, 2) if ordered else 0.0 for share in (0.5, 0.99)))


class DecisionCount:
    """Counts placements as they come."""

    def __init__(self) -> None:
        self._exploit = self._placed = self._rebalanced = self._replicated = 0

    def add(self, placement: Placed) -> None:
        """One more."""
        self._placed += 1
        self._exploit += placement.mode == "exploit"
        if placement.adjusted:
            self._rebalanced += any(reason.startswith("rebalanced") for reason in placement.adjusted)
            self._replicated += any(reason.startswith("replicated") for reason in placement.adjusted)

    def total(self) -> Decisions:
        """All of them."""
        return Decisions(self._exploit, self._placed - self._exploit, self._rebalanced, self._replicated)
