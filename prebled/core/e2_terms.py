"""The terms of `e2`'s cost for all candidates of one request, and their sum.

They are worked out in one of two ways: in arrays, or, for a few candidates, in plain floats, since some twenty calls of
numpy take longer than the arithmetic of a dozen. Both put the same numbers into the same formulas in the same order,
so that all but the sum of the waits agree to the last digit; a test holds them to it. Decides nothing.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from prebled.core.cost import prefill_seconds
from prebled.core.load import BEHIND, OUTPUT, PREFILL_HALF_CONTEXT, PREFILL_TOKEN, ROOM, SPEED, UNTIL
from prebled.core.sight import FEW, Indices, Sight, Vector


class Terms(msgspec.Struct, frozen=True, gc=False):
    """Per candidate, `wait_s` and `prefill_s` as `Sight` has them, and `recomputed_s`: what computing the same tokens
    takes a worker of median speed. `sum_wait_s`: over all. `most`: the most cached tokens; `holders`: who has them."""

    wait_s: Vector
    prefill_s: Vector
    recomputed_s: Vector
    sum_wait_s: float
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
    return Terms(wait_s, prefill_s, prefill_s * sight.speed, float(np.add.reduce(wait_s)), int(most), holders)


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
    return Terms(wait_s, prefill_s, recomputed_s, math.fsum(wait_s), int(most), holders)


class Weights(msgspec.Struct, frozen=True, gc=False):
    """`decode`: of a second of prefill, for each sequence that decodes beside it; `output`: of a second by which the
    request's own output is slowed; `room`: of a second of waiting for room in the KV cache."""

    decode: float
    output: float
    room: float


def costs(terms: Terms, sight: Sight, dearness: float, weights: Weights) -> tuple[Vector, Vector]:
    """For each candidate: what it costs but for the sequences that decode there, and with them. `dearness`: of a second
    of recomputation, beyond that second."""
    wait_s, prefill_s, recomputed_s, loads = terms.wait_s, terms.prefill_s, terms.recomputed_s, sight.loads
    decode, output, room = weights.decode, weights.output, weights.room
    if not isinstance(wait_s, list):
        plain = wait_s + prefill_s + dearness * np.asarray(recomputed_s) + room * loads[ROOM]
        return plain, plain + decode * sight.decoding * prefill_s + output * loads[OUTPUT]
    plain_s, total_s = [], []
    for wait, prefill, recomputed, room_s, decoding, output_s in zip(
        wait_s,
        prefill_s,
        recomputed_s,
        loads[ROOM].tolist(),
        sight.decoding.tolist(),
        loads[OUTPUT].tolist(),
        strict=True,
    ):
        plain_s.append(own_s := wait + prefill + dearness * recomputed + room * room_s)
        total_s.append(own_s + decode * decoding * prefill + output * output_s)
    return plain_s, total_s
