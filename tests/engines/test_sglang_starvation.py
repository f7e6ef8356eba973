"""Long cold prompts in front of a stream of short cached ones, in the real scheduler: who is served when. Counted in
requests served, not in seconds. `groups` runs on two tensor-parallel ranks, which hang unless they order alike."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

from prebled.bench.queue_starvation import Starvation, starve
from prebled.worker.sglang_engine import SGLangEngine

SHORTS, LONGS, RUNNING = 120, 3, 2  # together below the 128 above which SGLang's lpm falls back to fcfs


async def served(model: Path, policy: str, tp: int) -> Starvation:
    """All requests come at once, so that what is counted does not hang on how fast this process is."""
    engine = SGLangEngine(
        str(model),
        tp=tp,
        kv_tokens=8192,
        device="cpu",
        queue_policy=policy,
        server_args={"max_running_requests": RUNNING},
    )
    try:
        capacity = await engine.start(lambda text: None)
        return await starve(
            engine, capacity, policy=policy, shorts=SHORTS, waiting=SHORTS, ahead=0, longs=LONGS, output_tokens=2
        )
    finally:
        await engine.stop()


@pytest.mark.sglang
@pytest.mark.timeout(300)
async def test_only_longest_match_first_lets_long_prompts_starve(tiny_model: Path) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed")
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(served(tiny_model, policy, tp)) for policy, tp in (("fcfs", 1), ("lpm", 1), ("groups", 2))
        ]
    fcfs, lpm, groups = (task.result() for task in tasks)
    assert min(one.short_cached for one in (fcfs, lpm, groups)) > 0.8
    assert fcfs.shorts_before == [0] * LONGS
    assert min(lpm.overtaken_by) >= SHORTS - RUNNING
    assert groups.overtaken_by[0] <= groups.bound[0] < SHORTS
    # In fact the cached ones, of group 8, get nine slots to one.
    assert all(before <= 10 * (older + 1) for older, before in enumerate(groups.shorts_before))
