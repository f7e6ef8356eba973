"""When the requests of a recording come: a seeded cut of it, stamps spread, sessions started.

Knows nothing of blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prebled.bench.trace_chance import stream
from prebled.bench.trace_recording import Recording

_COARSE_S = 1.0
"""Stamps in steps of at least this may stand for times between."""
_FEW = 10
"""Distinct stamps below which nothing is concluded from them."""


def cut(recording: Recording, limit: int | None, seed: int) -> Recording:
    """A window of `limit` consecutive requests, its first drawn from the seed."""
    count = len(recording.sessions)
    if limit is None or limit >= count:
        return recording
    first = int(stream(seed, "cut").integers(0, count - limit + 1))
    return recording.take(np.arange(first, first + limit))


def cut_sessions(recording: Recording, limit: int | None, seed: int) -> Recording:
    """The sessions in an order drawn from the seed, as many as give `limit` requests, the last one cut short."""
    rows_of: dict[str, list[int]] = {}
    for row, session in enumerate(recording.sessions):
        rows_of.setdefault(session, []).append(row)
    sessions = list(rows_of.values())
    order = stream(seed, "sessions").permutation(len(sessions))
    rows = [row for number in order for row in sessions[number]]
    return recording.take(np.array(rows[:limit], np.int64))


def spread_stamps(recording: Recording, seed: int) -> Recording:
    """Requests with coarse stamps laid uniformly over the time that the stamp stands for.

    Stamps are coarse if all are multiples of one step of at least a second (from the first one on), there are at least
    ten of them, and more than half of the requests share theirs with another.
    """
    stamps = np.round((recording.arrival_s - recording.arrival_s[0]) * 1e3).astype(np.int64)
    distinct, which, counts = np.unique(stamps, return_inverse=True, return_counts=True)
    step_s = int(np.gcd.reduce(distinct)) / 1e3
    if distinct.size < _FEW or step_s < _COARSE_S or 2 * int(counts[counts > 1].sum()) <= stamps.size:
        return recording
    offsets = stream(seed, "spread").uniform(0, step_s, stamps.size)
    # Sorted within each stamp: requests keep their order, turns of one session theirs.
    offsets = offsets[np.lexsort((offsets, which))]
    return recording.at(recording.arrival_s + offsets)


def start_sessions(recording: Recording, rate: float, seed: int) -> NDArray[np.float64]:
    """Arrivals of a closed loop whose sessions stand together: session starts are Poisson of `rate` a second, the
    first at 0; later turns as far after the start as in the recording."""
    is_first = np.array([a != b for a, b in zip(recording.sessions, ["", *recording.sessions[:-1]], strict=True)])
    number = np.cumsum(is_first) - 1
    gaps = stream(seed, "starts").exponential(1 / rate, int(is_first.sum()))
    starts = np.cumsum(gaps) - gaps[0]
    # To the nanosecond: the last digits of logarithms are not the same on every machine.
    arrivals: NDArray[np.float64] = starts[number] + recording.arrival_s - recording.arrival_s[is_first][number]
    return arrivals.round(9)
