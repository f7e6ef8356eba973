"""Prompts that share prefixes of which the cache holds nothing, all at once: how much is computed more than once.

`families` prefixes, `copies` prompts of each, which differ in their last `tail_tokens`; prompts of a family come one
after another. Computing each prefix once, and each tail, is the least that can be done.
"""

from __future__ import annotations

import msgspec
import numpy as np

from prebled.bench.queue_engine import EngineRuns, Prompts
from prebled.messages import Capacity
from prebled.worker.engine import Engine


class Burst(msgspec.Struct, frozen=True):
    """Of one policy. Tokens of all prompts, those of them that were computed, and the least number; seconds to the
    first token: the mean and that of the last prompt to get one."""

    policy: str
    prompts: int
    prompt_tokens: int
    prefilled_tokens: int
    least_tokens: int
    ttft_s: float
    last_ttft_s: float


async def burst(
    engine: Engine,
    capacity: Capacity,
    *,
    policy: str,
    families: int,
    copies: int,
    prefix_tokens: int,
    tail_tokens: int = 16,
    output_tokens: int = 2,
    seed: int = 0,
) -> Burst:
    """Run the experiment on a started engine that nothing else uses, `policy` its queue's. Raises EngineFailed."""
    prompts = Prompts(capacity.vocab_size, seed)
    runs = EngineRuns(engine)
    runs.submit([(prompts.draw(prefix_tokens), output_tokens)])  # the first of all takes longer
    await runs.wait_all()
    runs = EngineRuns(engine)
    prefixes = [prompts.draw(prefix_tokens) for _ in range(families)]
    drawn = [(prompts.draw(tail_tokens, prefix), output_tokens) for prefix in prefixes for _ in range(copies)]
    runs.submit(drawn)
    await runs.wait_all()
    ttfts = [first.ttft_s for first in runs.firsts.values()]
    tokens = len(drawn) * (prefix_tokens + tail_tokens)
    blocks = prefix_tokens // capacity.block_tokens
    return Burst(
        policy=policy,
        prompts=len(drawn),
        prompt_tokens=tokens,
        prefilled_tokens=tokens - sum(first.cached_tokens for first in runs.firsts.values()),
        least_tokens=tokens - families * (copies - 1) * blocks * capacity.block_tokens,
        ttft_s=round(float(np.mean(ttfts)), 4),
        last_ttft_s=round(max(ttfts), 4),
    )
