"""What is in a trace: lengths, how its requests come, and what of its prompts is shared.

Sharing is counted in the trace's own order of requests (that of arrival, in an open loop) and in whole blocks of the
trace, so that it is the bound of any placement with an infinite cache. In hindsight, the paths of all prompts form a
radix tree: a node is a longest run of blocks that the same requests have. A request's key node is the deepest on its
path with more blocks than all before it together (Preble, Table 1).
"""

from __future__ import annotations

import msgspec
import numpy as np

from prebled.bench.trace import Trace
from prebled.bench.trace_recording import Floats, Ints, bounds_of

WINDOW_S = 10.0


class Spread(msgspec.Struct, frozen=True):
    """Of one quantity over requests."""

    mean: float
    std: float
    p50: float
    p90: float
    p99: float
    max: float


class Mean(msgspec.Struct, frozen=True):
    """Mean and standard deviation."""

    mean: float
    std: float


class TraceStats(msgspec.Struct, frozen=True):
    """`rate`: requests a second from the first to the last, in a closed loop sessions that start, and `duration_s`
    the time between. `dispersion`: variance over mean of the counts in windows
    of ten seconds (1 is Poisson); None if there are fewer than two windows, or in a closed loop. `ideal_hit_ratio`:
    prompt tokens that an infinite cache holds, of all. `shared`: the same as a share of each prompt. `key_portion`: of
    each prompt, the share that is its key node. `requests_per_key`: of key nodes, the requests with it on their path.
    `roots`: distinct first blocks. `continued`: requests that their session's next turn goes on from. Shares are 0 to
    1; where no prompt fills a block, those that need some are 0."""

    name: str
    block_tokens: int
    is_closed_loop: bool
    requests: int
    duration_s: float
    rate: float
    dispersion: float | None
    sessions: int
    continued: int
    prompt_tokens: Spread
    output_tokens: Spread
    ideal_hit_ratio: float
    distinct_blocks: int
    roots: int
    shared: Mean
    key_portion: Mean
    requests_per_key: Mean


def measure_trace(trace: Trace) -> TraceStats:
    """The statistics of a trace."""
    requests = trace.requests
    prompt_tokens = np.array([request.prompt_tokens for request in requests], np.int64)
    arrival_s = _arrivals(trace)
    duration_s = float(arrival_s.max())
    blocks = np.frombuffer(b"".join(request.path for request in requests), "<u8")
    bounds = bounds_of(np.array([len(request.path) // 8 for request in requests], np.int64))
    hits, key_blocks, key_requests, distinct = _sharing(blocks, bounds)
    cached = hits * trace.block_tokens
    firsts = bounds[:-1][np.diff(bounds) > 0]
    return TraceStats(
        name=trace.name,
        block_tokens=trace.block_tokens,
        is_closed_loop=trace.is_closed_loop,
        requests=len(requests),
        duration_s=round(duration_s, 3),
        rate=round((arrival_s.size - 1) / duration_s, 4) if duration_s else 0.0,
        dispersion=None if trace.is_closed_loop else _dispersion(arrival_s),
        sessions=len({request.session for request in requests} - {""}),
        continued=sum(bool(request.next_path) for request in requests),
        prompt_tokens=_spread(prompt_tokens),
        output_tokens=_spread(np.array([request.output_tokens for request in requests], np.int64)),
        ideal_hit_ratio=round(int(cached.sum()) / int(prompt_tokens.sum()), 5),
        distinct_blocks=distinct,
        roots=int(np.unique(blocks[firsts]).size),
        shared=_mean(cached / prompt_tokens),
        key_portion=_mean(key_blocks * trace.block_tokens / prompt_tokens),
        requests_per_key=_mean(key_requests),
    )


def _arrivals(trace: Trace) -> Floats:
    """Of requests; in a closed loop of sessions, for the rest is up to the answers."""
    if not trace.is_closed_loop:
        return np.array([request.arrival_s for request in trace.requests])
    firsts: dict[str, float] = {}
    for request in trace.requests:
        firsts.setdefault(request.session, request.arrival_s)
    return np.array(list(firsts.values()))


def _sharing(blocks: np.ndarray[tuple[int], np.dtype[np.uint64]], bounds: Ints) -> tuple[Ints, Ints, Ints, int]:
    """Of each request the blocks seen in an earlier one, and those of its key node; of each key node the requests that
    have it; and how many distinct blocks there are. Those of request i are from `bounds[i]` to `bounds[i+1]`."""
    lengths = np.diff(bounds)
    if not blocks.size:
        none = np.zeros(lengths.size, np.int64)
        return none, none, np.zeros(0, np.int64), 0
    _, first, which, counts = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    seen = bounds_of(first[which] < np.repeat(bounds[:-1], lengths))
    hits: Ints = seen[bounds[1:]] - seen[bounds[:-1]]
    # A node begins with each prompt, and wherever fewer requests have a block than the one before it.
    users = counts[which]
    begins = np.concatenate((np.ones(1, bool), users[1:] != users[:-1]))
    begins[bounds[:-1][lengths > 0]] = True
    starts = np.flatnonzero(begins)
    owner = np.searchsorted(bounds, starts, side="right") - 1
    depth = starts - bounds[owner]
    size = np.diff(np.append(starts, blocks.size))
    is_key = np.flatnonzero(size > depth)
    # The deepest of a request is the last of its own here: a prompt's first node always is one.
    last = is_key[np.append(owner[is_key][1:] != owner[is_key][:-1], True)]
    key_blocks = np.zeros(lengths.size, np.int64)
    key_blocks[owner[last]] = size[last]
    key_requests: Ints = counts[np.unique(which[starts[last]])]
    return hits, key_blocks, key_requests, int(first.size)


def _dispersion(arrival_s: Floats) -> float | None:
    windows = int(arrival_s.max() // WINDOW_S)
    if windows < 2:
        return None
    counts = np.bincount((arrival_s[arrival_s < windows * WINDOW_S] // WINDOW_S).astype(np.int64), minlength=windows)
    return round(float(counts.var() / counts.mean()), 3)


def _spread(values: Ints) -> Spread:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    figures = (values.mean(), values.std(), p50, p90, p99, values.max())
    return Spread(*(round(float(figure), 2) for figure in figures))


def _mean(values: Ints | Floats) -> Mean:
    if not values.size:
        return Mean(0.0, 0.0)
    return Mean(round(float(values.mean()), 5), round(float(values.std()), 5))
