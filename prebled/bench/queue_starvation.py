"""Long prompts that the cache does not hold, in a steady stream of short ones that it does: who waits, and how long.

The engine is warm with the prefix that the short prompts share. A queue of short ones comes, with the long ones among
them behind the first few; for every short one that ends another is submitted, so that the queue stays as full as it is
until the stream ends. Under longest-match-first every short one goes before every long one.
"""

from __future__ import annotations

import msgspec
import numpy as np

from prebled.bench.queue_engine import EngineRuns, Prompts
from prebled.core.local_scheduler import LocalScheduler
from prebled.messages import Capacity
from prebled.worker.engine import Engine


class Starvation(msgspec.Struct, frozen=True):
    """Of one policy; lists have an entry for each long prompt, in the order of arrival.

    `shorts_before`: short ones that got their first token before it; `overtaken_by`: those of them that came after it.
    `bound`: the slot by which `groups` promises to take it. `short_cached`: the part of the short prompts' tokens that
    the cache held. Times to the first token, in seconds."""

    policy: str
    shorts: int
    shorts_before: list[int]
    overtaken_by: list[int]
    bound: list[int]
    long_ttft_s: list[float]
    short_ttft_s: float
    short_cached: float


async def starve(
    engine: Engine,
    capacity: Capacity,
    *,
    policy: str,
    shorts: int,
    waiting: int,
    ahead: int,
    longs: int,
    prefix_tokens: int = 512,
    tail_tokens: int = 64,
    long_tokens: int = 2048,
    output_tokens: int = 4,
    seed: int = 0,
) -> Starvation:
    """Run the experiment on a started engine that nothing else uses, `policy` its queue's: `longs` long prompts behind
    `ahead` short ones, `waiting` short ones in the queue or running, and `shorts` in all. Raises EngineFailed."""
    prompts = Prompts(capacity.vocab_size, seed)
    prefix = prompts.draw(prefix_tokens)
    runs = EngineRuns(engine)
    runs.submit([(prompts.draw(tail_tokens, prefix), output_tokens)])
    await runs.wait_all()

    def draw(count: int) -> list[tuple[bytes, int]]:
        return [(prompts.draw(tail_tokens, prefix), output_tokens) for _ in range(count)]

    cold = [(prompts.draw(long_tokens), output_tokens) for _ in range(longs)]
    run_ids = runs.submit([*draw(ahead), *cold, *draw(waiting - ahead)])  # at once: the engine sees all or none
    long_ids = run_ids[ahead : ahead + longs]
    left = shorts - waiting
    while len(runs):
        ended = [run_id for run_id in await runs.wait_step() if run_id not in long_ids]
        more = min(len(ended), left)
        if more:
            run_ids += runs.submit(draw(more))
            left -= more
    short_ids = [run_id for run_id in run_ids if run_id not in long_ids]
    younger = short_ids[ahead:]
    firsts = runs.firsts
    patience = LocalScheduler().patience
    return Starvation(
        policy=policy,
        shorts=len(short_ids),
        shorts_before=[sum(firsts[one].slot < firsts[long].slot for one in short_ids) for long in long_ids],
        overtaken_by=[sum(firsts[one].slot < firsts[long].slot for one in younger) for long in long_ids],
        bound=[(ahead + older + 1) * (patience + 1) for older in range(longs)],
        long_ttft_s=[round(firsts[long].ttft_s, 3) for long in long_ids],
        short_ttft_s=round(float(np.mean([firsts[one].ttft_s for one in short_ids])), 3),
        short_cached=round(
            sum(firsts[one].cached_tokens for one in short_ids) / (len(short_ids) * (prefix_tokens + tail_tokens)), 3
        ),
    )
