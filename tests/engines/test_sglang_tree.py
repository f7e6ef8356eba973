"""What the worker believes SGLang holds, against SGLang's own tree, whole, after every burst of constant eviction."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_driver import BLOCK_TOKENS, Driver, prompt, submit
from naive_cache import NaiveCache
from sglang_tree_child import CHILD, read_blocks, read_depths, tree_path

from prebled.core.types import RunId
from prebled.messages import KvCleared
from prebled.worker import sglang_engine
from prebled.worker.sglang_engine import SGLangEngine
from prebled.worker.sglang_process import SchedulerProcesses

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

KV_BLOCKS = 32
BURSTS = 5


async def burst(driver: Driver, rng: random.Random, runs: int) -> int:
    """So many runs beside each other with shared beginnings and two salts, a few aborted; how many blocks went."""
    run_ids = []
    for _ in range(runs):
        asked = prompt(rng.randrange(8), 500)[: rng.choice((64, 200, 500))] + prompt(rng.randrange(100, 120), 300)
        run_ids.append(driver.new_id())
        salt, length = rng.choice(("", "", "s")), rng.randint(1, 700)
        driver.submit(submit(run_ids[-1], asked[:length], rng.choice((1, 3, 80)), cache_salt=salt))
    gone = 0
    while any(driver.outcomes[run_id].end is None for run_id in run_ids):
        before = set(driver.told.parents)
        await driver.step()
        gone += len(before - driver.told.parents.keys())
        if rng.random() < 0.02:
            driver.engine.abort_nowait([RunId(rng.choice(run_ids))])
    return gone


async def wait_equal(told: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """SGLang writes its tree down when it goes idle, a moment after the last output."""
    for _ in range(1000):
        if told() == theirs():
            return
        await asyncio.sleep(0.01)
    assert told() == theirs()


def depths(parents: dict[int, int]) -> Counter[int]:
    def depth(block: int) -> int:
        return depth(parents[block]) + 1 if parents[block] else 0

    return Counter(map(depth, parents))


@pytest.mark.parametrize("core", ["python", "rust"])
async def test_after_constant_eviction_the_mirror_equals_sglangs_tree(
    core: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREBLED_TEST_TREES", str(tmp_path))
    monkeypatch.setenv("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", core)
    monkeypatch.setattr(sglang_engine, "SchedulerProcesses", functools.partial(SchedulerProcesses, CHILD))
    engine = SGLangEngine(
        str(tiny_model),
        block_tokens=BLOCK_TOKENS,
        kv_tokens=KV_BLOCKS * BLOCK_TOKENS,
        context_tokens=1024,
        device="cpu",
        server_args={"max_running_requests": 6, "chunked_prefill_size": 256},
    )
    try:
        driver = Driver(engine, await engine.start(lambda text: None))
        driver.set_namespace("served")
        tree = tree_path(tmp_path, engine.pids[0])
        rng = random.Random(5)
        gone = 0
        for _ in range(BURSTS):
            gone += await burst(driver, rng, 25)
            if core == "python":
                await wait_equal(
                    lambda: NaiveCache(engine.held()).parents, lambda: read_blocks(tree, "served", BLOCK_TOKENS)
                )
            else:
                await wait_equal(
                    lambda: depths(NaiveCache(engine.held()).parents), lambda: read_depths(tree, BLOCK_TOKENS)
                )
            assert driver.told == NaiveCache(engine.held())
        assert gone > 10 * KV_BLOCKS
        print(f"{core}: {gone} blocks evicted, {len(driver.told.parents)} held at the end")  # noqa: T201

        assert driver.told.parents
        await flush(engine)
        while not (step := await driver.step()).kv:
            pass  # measurements
        assert step.kv == (KvCleared(),)
        assert engine.held() == ()
        await burst(driver, rng, 1)
    finally:
        await engine.stop()


async def flush(engine: SGLangEngine) -> None:
    """What SGLang's `/flush_cache` sends; the worker itself never does."""
    assert engine._processes is not None
    engine._processes.send(msgspec.msgpack.encode(["FlushCacheReqInput"]))
