"""The load generator behind `prebled bench serve`: drives a running daemon over its native socket and reports latency
as users feel it. Open loop (Poisson arrivals at a rate) or closed loop (so many requests at once).

Definitions. TTFT: sending to first token. ITL: gaps between token chunks. TPOT: (E2E - TTFT) / (output - 1), outputs
of one token left out. Goodput: requests a second with TTFT <= 5 s and TPOT <= 200 ms.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from prebled.client import AsyncClient
from prebled.errors import PrebledError, Saturated

TTFT_LIMIT_S = 5.0
TPOT_LIMIT_S = 0.2


class Served(msgspec.Struct, frozen=True):
    """One request as the client saw it; times in seconds. `error` is the code of what went wrong, if something did."""

    ttft_s: float
    e2e_s: float
    gaps_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for outputs of one token."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


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


async def serve_one(client: AsyncClient, prompt: Sequence[int], max_tokens: int) -> Served:
    """Send one prompt and time its answer. Being told to come back later is obeyed; any other error ends it."""
    start = time.perf_counter()
    while True:
        try:
            stream = await client.generate(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            marks = [time.perf_counter() async for chunk in stream if chunk.tokens]
        except Saturated as refusal:
            await asyncio.sleep(refusal.retry_after_s or 1.0)
            continue
        except PrebledError as error:
            return Served(0.0, time.perf_counter() - start, error=error.code)
        usage = stream.usage
        if usage is None or not marks:
            return Served(0.0, time.perf_counter() - start, error="empty_answer")
        gaps = tuple(b - a for a, b in pairwise(marks))
        return Served(
            marks[0] - start,
            marks[-1] - start,
            gaps,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
        )


def arrival_gaps(rate: float, seed: int) -> Iterator[float]:
    """Seconds between arrivals of a Poisson process of `rate` requests a second; none at all for rate 0."""
    chance = random.Random(seed)
    while True:
        yield chance.expovariate(rate) if rate > 0 else 0.0


async def drive(
    address: str,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    concurrency: int,
    rate: float = 0.0,
    seed: int = 0,
) -> ServeReport:
    """Send all prompts, at most `concurrency` at once, at `rate` a second (0: as fast as that allows)."""
    served: list[Served] = []
    slots = asyncio.Semaphore(concurrency)
    start = time.perf_counter()
    async with AsyncClient(address) as client:

        async def one(prompt: Sequence[int]) -> None:
            try:
                served.append(await serve_one(client, prompt, max_tokens))
            finally:
                slots.release()
            _progress(len(served), len(prompts))

        async with asyncio.TaskGroup() as tasks:
            for prompt, gap_s in zip(prompts, arrival_gaps(rate, seed), strict=False):
                await asyncio.sleep(gap_s)
                await slots.acquire()
                tasks.create_task(one(prompt))
    return _report(served, time.perf_counter() - start)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{total} requests" + ("\n" if done == total else ""))
        sys.stderr.flush()


def _report(served: Sequence[Served], wall_s: float) -> ServeReport:
    good = [one for one in served if one.error is None]
    errors: dict[str, int] = {}
    for one in served:
        if one.error is not None:
            errors[one.error] = errors.get(one.error, 0) + 1
    in_time = sum(one.ttft_s <= TTFT_LIMIT_S and (one.tpot_s or 0.0) <= TPOT_LIMIT_S for one in good)
    prompt_tokens = sum(one.prompt_tokens for one in good)
    cached_tokens = sum(one.cached_tokens for one in good)
    return ServeReport(
        requests=len(served),
        completed=len(good),
        failed=len(served) - len(good),
        errors=errors,
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
