"""The terms of `e2`'s cost for all candidates of one request, and their sum.

They are worked out in one of two ways: in arrays, or, for a few candidates, in plain floats, since some twenty calls of
numpy take longer than the arithmetic of a dozen. Both put the same numbers into the same formulas in the same order,
so that they agree to the last digit; a test holds them to it. Decides nothing.
"""

from __future__ import annotations

import msgspec
import numpy as np

from prebled.core.cost import prefill_seconds
from prebled.core.load import (
    BEHIND,
    DECODING,
    OUTPUT,
    PREFILL_HALF_CONTEXT,
    PREFILL_TOKEN,
    REQUESTS,
    SPEED,
    UNTIL,
)
from prebled.core.sight import FEW, Indices, Sight, Vector


class Terms(msgspec.Struct, frozen=True, gc=False):
    """Per candidate, `wait_s` and `prefill_s` as `Sight` has them, and `recomputed_s`: what computing the same tokens
    takes a worker of median speed. `least_wait_s`: of all. `most`: the most cached tokens; `holders`: who has them."""

    wait_s: Vector
    prefill_s: Vector
    recomputed_s: Vector
    least_wait_s: float
    most: int
    holders: Indices


def terms_of(sight: Sight) -> Terms:
    """What the cost is made of."""
    return few_terms(sight) if len(sight.ids) <= FEW else many_terms(sight)


def many_terms(sight: Sight) -> Terms:
    """In arrays."""
    wait_s, cached_tokens = sight.wait_s(), sight.cached_tokens
    most = cached_tokens.item(cached_tokens.argmax())
    holders = (cached_tokens == most).nonzero()[0]
    prefill_s = sight.prefill_s()
    return Terms(wait_s, prefill_s, prefill_s * sight.speed, wait_s.item(wait_s.argmin()), int(most), holders)


def few_terms(sight: Sight) -> Terms:
    """In plain floats."""
    now, prompt_tokens, loads = sight.now, sight.prompt_tokens, sight.loads
    all_cached = sight.cached_tokens.tolist()
    wait_s, prefill_s, recomputed_s = [], [], []
    for until, behind, token_s, half_context_s, speed, cached in zip(
        loads[UNTIL].tolist(),
        loads[BEHIND].tolist(),
        loads[PREFILL_TOKEN].tolist(),
        loads[PREFILL_HALF_CONTEXT].tolist(),
        loads[SPEED].tolist(),
        all_cached,
        strict=True,
    ):
        left = until - now
        wait_s.append(left if left > behind else behind)
        prefill_s.append(own_s := prefill_seconds(cached, prompt_tokens, token_s, half_context_s))
        recomputed_s.append(own_s * speed)
    most = max(all_cached)
    holders = [index for index, cached in enumerate(all_cached) if cached == most] if most else []
    return Terms(wait_s, prefill_s, recomputed_s, min(wait_s), int(most), holders)


class Weights(msgspec.Struct, frozen=True, gc=False):
    """`decode`: of a second of prefill, for each sequence that decodes beside it; `waiting`: for each request waiting
    there; `output`: of a second by which the request's own output is slowed. If it is cached whole, `overtaking`: the
    share of the queued prefill that it overtakes, and `overtaken`: of a second of its prefill, for each who waits,
    besides `waiting`."""

    decode: float
    waiting: float
    output: float
    overtaking: float
    overtaken: float


def costs(terms: Terms, sight: Sight, dearness: float, weights: Weights) -> tuple[Vector, Vector]:
    """For each candidate: what it costs but for the requests in flight beside it, and with them. `dearness`: of a
    second of recomputation, beyond that second."""
    wait_s, prefill_s, recomputed_s, loads = terms.wait_s, terms.prefill_s, terms.recomputed_s, sight.loads
    decode, each_waiting, output = weights.decode, weights.waiting, weights.output
    prompt_tokens = max(sight.prompt_tokens, 1)
    overtaking, overtaken = weights.overtaking / prompt_tokens, weights.overtaken / prompt_tokens
    if not isinstance(wait_s, list):
        cached, decoding, waiting = sight.cached_tokens, sight.decoding, sight.requests - sight.decoding
        plain = wait_s - overtaking * cached * loads[BEHIND] + prefill_s + dearness * np.asarray(recomputed_s)
        beside = decode * decoding + (each_waiting + overtaken * cached) * waiting
        return plain, plain + beside * prefill_s + output * loads[OUTPUT]
    plain_s, total_s = [], []
    for wait, behind, prefill, recomputed, cached, requests, decoding, output_s in zip(
        wait_s,
        loads[BEHIND].tolist(),
        prefill_s,
        recomputed_s,
        sight.cached_tokens.tolist(),
        loads[REQUESTS].tolist(),
        loads[DECODING].tolist(),
        loads[OUTPUT].tolist(),
        strict=True,
    ):
        waiting = requests - decoding
        plain_s.append(own_s := wait - overtaking * cached * behind + prefill + dearness * recomputed)
        beside = decode * decoding + (each_waiting + overtaken * cached) * waiting
        total_s.append(own_s + beside * prefill + output * output_s)
    return plain_s, total_s
