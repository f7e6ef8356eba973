"""What the daemon predicts of its workers' caches, against what SGLang takes from them, under constant eviction."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import numpy as np
import pytest
from daemon_process import DaemonProcess

from prebled import AsyncClient
from prebled.core.decisions import Explanation
from prebled.tiny_model import VOCAB_SIZE

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

KV_TOKENS = 4096
FAMILIES = 40
"""Of five to ten blocks each: several times what both workers hold."""


async def explanations(address: str, requests: int, at_once: int, seed: int) -> list[Explanation]:
    """What came of so many requests of a few families, some of them with the answer of an earlier one appended."""
    rng = random.Random(seed)
    gate = asyncio.Semaphore(at_once)
    turns: list[list[int]] = []

    async def one(client: AsyncClient) -> Explanation:
        async with gate:
            turn = rng.choice(turns) if turns and rng.random() < 0.3 else _prompt(rng)
            stream = await client.generate(turn, max_tokens=rng.choice((1, 4, 80)), ignore_eos=True)
            made = [token async for chunk in stream for token in chunk.tokens]
            turns.append([*turn, *made][:700])
            del turns[:-10]
            return await client.explain(stream.request_id)

    async with AsyncClient(address) as client:
        return await asyncio.gather(*(one(client) for _ in range(requests)))


def _prompt(rng: random.Random) -> list[int]:
    shared = np.random.default_rng(int(FAMILIES * rng.random() ** 2)).integers(100, VOCAB_SIZE, 320)
    own = np.random.default_rng(rng.randrange(2**32)).integers(100, VOCAB_SIZE, rng.randint(1, 320))
    return [int(token) for token in (*shared, *own)]


async def test_predicted_is_actual_but_for_what_was_evicted_in_between(daemon: DaemonProcess) -> None:
    daemon.start("--served-model-name", "tiny", "--kv-tokens", str(KV_TOKENS), engine="sglang")
    daemon.wait_ready(2, timeout=240)
    explained = await explanations(daemon.native, 200, at_once=16, seed=1)
    explained += await explanations(daemon.native, 200, at_once=32, seed=2)
    causes = Counter(one.mispredicted for one in explained)
    others = len(explained) - causes["evicted"]
    cached = sum(one.cached_tokens or 0 for one in explained)
    print(f"{dict(causes)}, {causes[None] / others:.2%} exact of {others}, {cached} tokens cached")  # noqa: T201
    assert causes[None] >= 0.99 * others
    assert cached > 64 * len(explained)
    prompts = sum(one.placement.matched_tokens + one.placement.missed_tokens for one in explained if one.placement)
    assert prompts - cached > 4 * 2 * KV_TOKENS, "each cache was filled several times over"
    status = daemon.status()
    assert status is not None
    assert status["counters"].get("requests_failed", 0) == 0
