"""What ordering the queue costs a real engine at each step, with so many requests waiting all the time.

The workload: prompts that share one of `PREFIXES` prefixes, three quarters of the prompt, and outputs of 1 to
2 * `output_tokens` - 1 tokens, so that runs end, and are followed by others, at any step. For every run that ends a new
one is submitted. The times are those that the engine reports of its steps (`StepSample`): ordering includes what
SGLang's own policy does.
"""

from __future__ import annotations

import msgspec
import numpy as np

from prebled.bench.queue_engine import EngineRuns, Prompts
from prebled.errors import EngineFailed
from prebled.messages import Capacity, StepSample
from prebled.worker.engine import Engine

PREFIXES = 20


class OrderCost(msgspec.Struct, frozen=True):
    """Of one policy. A step asks for an order at most once, and only when there is room for another run: `orders` of
    `steps` did. `order_us` is the mean over these, `order_us_per_step` over all; `share` is the part of all steps'
    time that was spent on ordering."""

    policy: str
    waiting: int
    steps: int
    step_ms: float
    orders: int
    order_us: float
    order_p50_us: float
    order_p99_us: float
    order_us_per_step: float
    share: float


async def measure_cost(
    engine: Engine,
    capacity: Capacity,
    *,
    policy: str,
    waiting: int,
    steps: int,
    prompt_tokens: int,
    output_tokens: int,
    seed: int = 0,
) -> OrderCost:
    """Measure so many steps of a started engine, `policy` its queue's. What still runs is left to the caller,
    who stops the engine. Raises EngineFailed, also if the engine measures no steps."""
    prompts = Prompts(capacity.vocab_size, seed)
    prefixes = [prompts.draw(prompt_tokens * 3 // 4) for _ in range(PREFIXES)]

    def draw() -> tuple[bytes, int]:
        prefix = prefixes[prompts.pick(PREFIXES)]
        return prompts.draw(prompt_tokens - len(prefix) // 4, prefix), 1 + prompts.pick(2 * output_tokens - 1)

    runs = EngineRuns(engine)
    runs.submit(draw() for _ in range(waiting + capacity.max_running))
    ends = 0
    while len(runs.samples) < steps:
        ended = await runs.wait_step()
        runs.submit([draw() for _ in ended])
        if ends < capacity.max_running <= ends + len(ended):
            runs.samples.clear()  # until here the engine was filling up
        ends += len(ended)
        if ends > 100 * steps:
            raise EngineFailed("the engine reports no steps")
    return _cost(policy, waiting, runs.samples[:steps])


def _cost(policy: str, waiting: int, samples: list[StepSample]) -> OrderCost:
    step_s = np.array([sample.step_s for sample in samples])
    order_s = np.array([sample.order_s for sample in samples])
    asked_us = order_s[order_s > 0] * 1e6
    if not len(asked_us):
        raise EngineFailed(f"no step of {len(samples)} asked for an order")
    return OrderCost(
        policy=policy,
        waiting=waiting,
        steps=len(samples),
        step_ms=round(float(step_s.mean()) * 1e3, 3),
        orders=len(asked_us),
        order_us=round(float(asked_us.mean()), 1),
        order_p50_us=round(float(np.median(asked_us)), 1),
        order_p99_us=round(float(np.percentile(asked_us, 99)), 1),
        order_us_per_step=round(float(order_s.mean()) * 1e6, 1),
        share=round(float(order_s.sum() / step_s.sum()), 5),
    )
