"""Round robin over `e2` on whole traces, at shares of what round robin itself can carry.

Round robin's capacity is found with `fcfs` queues, the plain engine. At 50, 80 and 95 % of it both policies are
replayed, with `fcfs` queues and with local priority groups. Beyond that capacity such factors grow with the length of
the trace and say little.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from prebled.bench.lab.campaign import AT_ROUND_ROBIN, OURS, ROUND_ROBIN
from prebled.bench.lab.cases import Case
from prebled.bench.lab.crew import Crew
from prebled.bench.lab.runs import Outcome, Run, Setup
from prebled.bench.lab.search import highest
from prebled.bench.lab.tables import table
from prebled.errors import SettingsError

SHARES = (0.5, 0.8, AT_ROUND_ROBIN)
"""Of round robin's capacity."""

QUEUES = ("fcfs", "groups")

PRECISION = 0.002
"""Of the capacity: round robin's latency is steep there."""


class Pair(msgspec.Struct, frozen=True):
    """Both at one rate with the same queues."""

    round_robin: Outcome
    e2: Outcome


class Factors(msgspec.Struct, frozen=True):
    """`capacity`: of round robin with `fcfs` queues, requests a second. `pairs`: by queue, in the order of `SHARES`."""

    case: str
    capacity: float
    pairs: dict[str, list[Pair]]


def measure(crew: Crew, cases: Sequence[Case], workers: int, seed: int, limit: int | None) -> list[Factors]:
    """Every case, in order. Raises SettingsError where round robin carries no rate that was tried."""
    return crew.map(lambda case: _measure(crew, case, workers, seed, limit), cases)


def _measure(crew: Crew, case: Case, workers: int, seed: int, limit: int | None) -> Factors:
    def is_stable(scale: float) -> bool:
        run = Run(case, Setup(ROUND_ROBIN, ROUND_ROBIN, {}, "fcfs"), workers, seed, scale, limit, "capacity")
        outcome = crew.try_out(run)
        return outcome is not None and outcome.is_stable

    def at(policy: str, queue: str, scale: float) -> Outcome:
        return crew.run(Run(case, Setup(policy, policy, {}, queue), workers, seed, scale, limit))

    capacity = highest(is_stable, workers / 4, precision=PRECISION)
    if not capacity:
        raise SettingsError(
            f"case {case.name!r}: {workers} workers behind round robin keep up with it at no rate tried"
        )
    scales = [round(share * capacity, 6) for share in SHARES]
    pairs = {
        queue: [Pair(at(ROUND_ROBIN, queue, scale), at(OURS, queue, scale)) for scale in scales] for queue in QUEUES
    }
    first = pairs["fcfs"][0].round_robin
    return Factors(case.name, capacity * first.rate / first.rate_scale, pairs)


def page(found: Sequence[Factors], workers: int, command: str, machine: str) -> str:
    """In Markdown. `command` made it on `machine`."""
    outcomes = [pair.e2 for one in found for pairs in one.pairs.values() for pair in pairs]
    speeds = [outcome.requests / outcome.wall_s for outcome in outcomes]
    slowest = max(outcomes, key=lambda outcome: outcome.decide_p99_us)
    parts = [
        "# Round robin over e2, whole traces",
        f"Made by `{command}` on {machine}. End-to-end latency of round robin over that of `e2`, at shares of round"
        " robin's own capacity with `fcfs` queues (the highest rate with a mean TTFT under 10 s and under 4 % of the"
        f" span of arrivals, found to {PRECISION:.1%}; requests a second). {workers} workers, blocks of 64 tokens,"
        " cache reports 50 ms late. Virtual time: the factors compare policies and predict no GPU.",
        *(_table(found, queue) for queue in QUEUES),
        "Rates are the same in both tables. Round robin's latency is steep near its limit, and the factors with it.",
        f"`e2` was replayed at {min(speeds):,.0f} to {max(speeds):,.0f} requests a second of wall time; the slowest p99"
        f" of its decisions was {slowest.decide_p99_us:.0f} us ({slowest.case}).",
    ]
    return "\n\n".join(parts) + "\n"


def _table(found: Sequence[Factors], queue: str) -> str:
    rows = []
    for one in found:
        pairs = one.pairs[queue]
        last = pairs[-1]
        rows.append(
            [
                *(one.case, f"{last.e2.requests:,}", f"{one.capacity:.3g}"),
                *(f"{pair.round_robin.e2e_mean / pair.e2.e2e_mean:.2f}" for pair in pairs),
                *(f"{pair.round_robin.e2e_p99 / pair.e2.e2e_p99:.2f}" for pair in pairs),
                *(f"{last.round_robin.hit_ratio:.0%}", f"{last.e2.hit_ratio:.0%}"),
            ]
        )
    shares = [f"{share:.0%}" for share in SHARES]
    header = ["trace", "requests", "capacity", f"mean at {shares[0]}", *shares[1:], f"p99 at {shares[0]}", *shares[1:]]
    return f"## {_TITLES[queue]}\n\n" + table([*header, "hits: round robin", "e2"], rows)


_TITLES = {"fcfs": "With fcfs queues", "groups": "With local priority groups"}
