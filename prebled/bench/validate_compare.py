"""Two outcomes of one trace held against each other: of real workers and of simulated ones.

Times are compared by their medians, prompt tokens taken from cache request by request. Those are a race where a request
that shares the prefix is being computed on the same worker at the same time: which of two steps came first decides what
the second finds, and a millisecond decides that. So a request is *certain* only if no such other request was in flight
beside it in either outcome, and if both placed it where as much of its prefix had been computed before.
"""

from __future__ import annotations

from statistics import median
from typing import Literal, TypeAlias

import msgspec

from prebled.bench.trace import Trace
from prebled.core.blocks import HASH_BYTES

LATE_S = 0.25
"""A request may be sent, or its token be seen, so much later than planned on a busy machine."""

Kind: TypeAlias = Literal["certain", "raced", "placed otherwise"]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a trace's requests, each list in their order: seconds from arrival to the first and to the last
    token, prompt tokens taken from cache, and the worker."""

    ttft_s: list[float]
    e2e_s: list[float]
    cached_tokens: list[int]
    workers: list[str]


class Medians(msgspec.Struct, frozen=True):
    """Seconds."""

    ttft_s: float
    e2e_s: float


class CachedTokens(msgspec.Struct, frozen=True):
    """`real` and `simulated`: of all requests together. `equal` of `requests` requests took as many in both;
    `certain` had no race to decide it, of which `certain_unequal` are told apart by number. `placed_otherwise`: found
    less or more of their prefix because they were placed where less or more of it was."""

    real: int
    simulated: int
    requests: int
    equal: int
    certain: int
    certain_unequal: list[int]
    placed_otherwise: int


def medians(outcome: Outcome) -> Medians:
    """Of all requests."""
    return Medians(round(median(outcome.ttft_s), 6), round(median(outcome.e2e_s), 6))


def cached(trace: Trace, real: Outcome, simulated: Outcome) -> CachedTokens:
    """Compare what was taken from cache."""
    kinds = sort_out(trace, real, simulated)
    pairs = list(zip(real.cached_tokens, simulated.cached_tokens, strict=True))
    return CachedTokens(
        real=sum(real.cached_tokens),
        simulated=sum(simulated.cached_tokens),
        requests=len(pairs),
        equal=sum(a == b for a, b in pairs),
        certain=kinds.count("certain"),
        certain_unequal=[at for at, (a, b) in enumerate(pairs) if kinds[at] == "certain" and a != b],
        placed_otherwise=kinds.count("placed otherwise"),
    )


def sort_out(trace: Trace, real: Outcome, simulated: Outcome) -> list[Kind]:
    """Which requests are certain, and why the others are not. Open loop only."""
    kinds: list[Kind] = []
    for number in range(len(trace.requests)):
        before, beside = _reach(trace, real, number)
        before_too, beside_too = _reach(trace, simulated, number)
        if beside > before or beside_too > before_too:
            kinds.append("raced")
        else:
            kinds.append("certain" if before == before_too else "placed otherwise")
    return kinds


def _reach(trace: Trace, outcome: Outcome, number: int) -> tuple[int, int]:
    """How many blocks a request shares with those on its worker whose prompts were computed before it came, and with
    those whose prompts may have been computed while it waited or was computed itself."""
    requests = trace.requests
    one = requests[number]
    first_token_at = one.arrival_s + outcome.ttft_s[number] + LATE_S
    before = beside = 0
    for index, other in enumerate(requests):
        if index == number or outcome.workers[index] != outcome.workers[number]:
            continue
        if other.arrival_s + outcome.ttft_s[index] + LATE_S < one.arrival_s:
            before = max(before, shared_blocks(one.path, other.path))
        elif other.arrival_s <= first_token_at:
            beside = max(beside, shared_blocks(one.path, other.path))
    return before, beside


def shared_blocks(path: bytes, other: bytes) -> int:
    """How many blocks two paths have in common from the start: found by halving, since hashes are chained."""
    low, high = 0, min(len(path), len(other)) // HASH_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        end = middle * HASH_BYTES
        if path[end - HASH_BYTES : end] == other[end - HASH_BYTES : end]:
            low = middle
        else:
            high = middle - 1
    return low
