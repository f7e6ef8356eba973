"""Replays the set-ups of Preble's evaluation and holds the outcomes against the published latencies.

Each set-up is replayed three times under round robin, the paper's E2 and `e2`: at the published rate; there with caches
that never evict, which shows how much the size of the caches and the order of the prompts matter; and at the rate at
which round robin has the published mean latency, where the engines are equally loaded by the one measure that both
sides have. Times are those of `bench.replay`: virtual.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from prebled.bench.lab.campaign import SETUPS as POLICY_SETUPS
from prebled.bench.lab.cases import Case
from prebled.bench.lab.crew import Crew
from prebled.bench.lab.runs import Outcome, Run
from prebled.bench.lab.search import highest
from prebled.bench.paper_setups import PaperSetup

PRECISION = 0.03
"""Of the rates at which round robin has the published latency."""

MOST_STRIDES = 8
"""How far from the published rate to look for it: to a factor of 17."""

ROOMY_KV_TOKENS = 100_000_000
"""Of each worker whose cache never evicts: more than all prompts of a run."""


class Trial(msgspec.Struct, frozen=True):
    """One set-up at one rate, requests/s."""

    rate: float
    round_robin: Outcome
    e2_paper: Outcome
    e2: Outcome


class Comparison(msgspec.Struct, frozen=True):
    """`as_published`: at the published rate; `roomy`: there, with caches that never evict. `matched`: at the highest
    rate at which round robin's mean latency is not above the published one; None where it is above at every rate."""

    setup: PaperSetup
    as_published: Trial
    roomy: Trial
    matched: Trial | None


def compare(crew: Crew, setups: Sequence[PaperSetup], seed: int) -> list[Comparison]:
    """Every set-up, in order."""
    return crew.map(lambda setup: _compare(crew, setup, seed), setups)


def _compare(crew: Crew, setup: PaperSetup, seed: int) -> Comparison:
    def at(policy: str, rate: float, kv_tokens: int | None = None) -> Outcome:
        name = f"{setup.workload} {setup.machines.name}"
        case = Case(name, setup.source(rate), setup.machines.profile, kv_tokens)
        return crew.run(Run(case, POLICY_SETUPS[policy], setup.machines.workers, seed, 1.0, None))

    def trial(rate: float, kv_tokens: int | None = None) -> Trial:
        return Trial(rate, *(at(policy, rate, kv_tokens) for policy in ("round-robin", "e2-paper", "e2")))

    def is_below(rate: float) -> bool:
        return at("round-robin", round(rate, 6)).e2e_mean <= setup.round_robin.mean

    rate = highest(is_below, setup.rate, precision=PRECISION, most_strides=MOST_STRIDES)
    matched = trial(round(rate, 6)) if rate else None
    return Comparison(setup, trial(setup.rate), trial(setup.rate, ROOMY_KV_TOKENS), matched)
