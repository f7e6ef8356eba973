"""The load generator behind `prebled bench serve`: sends jobs to a running server and reports latency as users feel it.

Open loop: jobs come at their own times, or by a Poisson process of a given rate. Closed loop: so many at once. Jobs of
one session come one after another.

Definitions. TTFT: sending to first token. ITL: gaps between token chunks. TPOT: (E2E - TTFT) / (output - 1), outputs
of one token left out. Goodput: requests a second with TTFT <= 5 s and TPOT <= 200 ms.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from prebled.bench.serve_jobs import Job, sessions
from prebled.bench.serve_targets import Served, Target, connect

TTFT_LIMIT_S = 5.0
TPOT_LIMIT_S = 0.2


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class ServeReport(msgspec.Struct, frozen=True):
    """What `bench serve --json` prints."""

    requests: int
    completed: int
    failed: int
    errors: dict[str, int]
    wall_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    hit_ratio: float
    goodput_per_s: float
    ttft_s: Spread
    tpot_s: Spread
    itl_s: Spread
    e2e_s: Spread


def spread(values: Sequence[float]) -> Spread:
    """Mean and percentiles; zeros for no values."""
    if not values:
        return Spread(0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return Spread(*(round(float(v), 6) for v in (np.mean(values), p50, p90, p99)))


async def drive(
    url: str,
    jobs: Sequence[Job],
    *,
    concurrency: int | None = None,
    rate: float = 0.0,
    seed: int = 0,
) -> tuple[list[Served], float]:
    """Send all jobs to `url` (see `connect`): at `rate` a second if it is not 0, else at their own times, those without
    one as soon as may be; never more than `concurrency` at once. What became of them, in the order of `jobs`, and the
    seconds it took.

    Raises SettingsError and Unavailable if there is nobody to send to."""
    served: dict[int, Served] = {}  # by the job's identity
    slots = asyncio.Semaphore(concurrency or len(jobs))

    async def session(target: Target, turns: Sequence[Job]) -> None:
        try:
            for number, job in enumerate(turns):
                if number:
                    await asyncio.sleep(job.think_s)
                served[id(job)] = await target.serve(job.tokens, job.max_tokens)
                _progress(len(served), len(jobs))
        finally:
            slots.release()

    async with connect(url) as target, asyncio.TaskGroup() as tasks:
        start = time.perf_counter()
        for turns, arrival_s in _timed(jobs, rate, seed):
            if arrival_s is not None:
                await asyncio.sleep(arrival_s - (time.perf_counter() - start))
            await slots.acquire()
            tasks.create_task(session(target, turns))
    return [served[id(job)] for job in jobs], time.perf_counter() - start


def report(served: Sequence[Served], wall_s: float) -> ServeReport:
    """The figures of all requests."""
    good = [one for one in served if one.error is None]
    in_time = sum(one.ttft_s <= TTFT_LIMIT_S and (one.tpot_s or 0.0) <= TPOT_LIMIT_S for one in good)
    prompt_tokens = sum(one.prompt_tokens for one in good)
    cached_tokens = sum(one.cached_tokens for one in good)
    return ServeReport(
        requests=len(served),
        completed=len(good),
        failed=len(served) - len(good),
        errors=dict(Counter(one.error for one in served if one.error is not None)),
        wall_s=round(wall_s, 3),
        requests_per_s=round(len(good) / wall_s, 3),
        output_tokens_per_s=round(sum(one.output_tokens for one in good) / wall_s, 1),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        hit_ratio=round(cached_tokens / prompt_tokens, 4) if prompt_tokens else 0.0,
        goodput_per_s=round(in_time / wall_s, 3),
        ttft_s=spread([one.ttft_s for one in good]),
        tpot_s=spread([one.tpot_s for one in good if one.tpot_s is not None]),
        itl_s=spread([gap for one in good for gap in one.gaps_s]),
        e2e_s=spread([one.e2e_s for one in good]),
    )


def _timed(jobs: Sequence[Job], rate: float, seed: int) -> Iterator[tuple[list[Job], float | None]]:
    """Sessions with the seconds after the start at which they begin, in that order."""
    begun = sessions(jobs)
    if rate <= 0:
        yield from sorted(((turns, turns[0].arrival_s) for turns in begun), key=lambda timed: timed[1] or 0.0)
        return
    chance = random.Random(seed)
    now = 0.0
    for turns in begun:
        now += chance.expovariate(rate)
        yield turns, now


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{total} requests" + ("\n" if done == total else ""))
        sys.stderr.flush()
