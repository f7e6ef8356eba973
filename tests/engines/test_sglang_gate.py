"""No page is computed twice at once: the gate in a loop like SGLang's, and in SGLang's own."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from engine_driver import BLOCK_TOKENS, Driver, prompt
from fake_queue import CLOSED, NEXT_ONE, PAGE, Loop, Policy, Req, match, pages
from hypothesis import given, settings
from hypothesis import strategies as st

from prebled.core.local_scheduler import LocalScheduler
from prebled.worker.sglang_gate import MOST_PASSED_OVER, PageGate
from prebled.worker.sglang_matches import LAG
from prebled.worker.sglang_queue import GroupOrder

SHARED = "shared prefix of ten pages, forty letters"[: 10 * PAGE]


def new_loop(policy: Policy | None = None, **options: Any) -> Loop:
    return Loop(PageGate(NEXT_ONE, CLOSED), policy or Policy(), **options)  # type: ignore[arg-type]


def batches(loop: Loop) -> list[list[str]]:
    """The prompts of each batch until the queue is empty."""
    made = []
    while loop.queue or loop.chunked:
        made.append([req.prompt for req in loop.step()])
        assert len(made) < 100
    return made


def test_of_a_burst_one_computes_the_prefix() -> None:
    loop = new_loop()
    loop.queue = [Req(SHARED + f"{number:02}") for number in range(MOST_PASSED_OVER)]
    prompts = [req.prompt for req in loop.queue]
    assert batches(loop) == [prompts[:1], prompts[1:]]
    assert [len(computed) for computed in loop.computed] == [10, 0]


def test_others_fill_the_batch() -> None:
    loop = new_loop()
    loop.queue = [Req(name * 8 + number) for name in "abc" for number in "01"]
    assert batches(loop) == [
        ["a" * 8 + "0", "b" * 8 + "0", "c" * 8 + "0"],
        ["a" * 8 + "1", "b" * 8 + "1", "c" * 8 + "1"],
    ]


def test_only_so_many_are_passed_over() -> None:
    """Then the batch is closed: to look at all of a long queue would cost more than is won."""
    policy = Policy()
    loop = new_loop(policy)
    loop.queue = [Req(SHARED + f"{number:02}") for number in range(40)] + [Req("another one")]
    assert len(loop.step()) == 1
    assert len(policy.matched) == 1 + MOST_PASSED_OVER
    assert len(loop.step()) == 40


def test_with_overlap_those_in_flight_are_waited_for() -> None:
    loop = new_loop(overlap=True)
    first, second, other, late = Req(SHARED + "1"), Req(SHARED + "2"), Req("other" * 2), Req(SHARED + "3")
    loop.queue = [first, second]
    assert loop.step() == [first]
    loop.queue += [other, late]
    assert loop.step() == [other]
    assert loop.step() == [second, late]
    assert sum(map(len, loop.computed)) == len(SHARED) // PAGE + 2


def test_one_that_ended_in_flight_is_not_waited_for() -> None:
    """An aborted one leaves nothing behind."""
    loop = new_loop(overlap=True)
    first, second = Req(SHARED + "1"), Req(SHARED + "2")
    loop.queue = [first, second]
    loop.step()
    first.is_finished = True
    loop.in_flight = []
    assert loop.step() == [second]


def test_what_a_chunk_computes_is_waited_for_and_no_more() -> None:
    """Chunks of three pages, of which two prompts share seven; a third shares none."""
    loop = new_loop(tokens=3 * PAGE)
    long, other, cold = Req(SHARED), Req(SHARED[:28] + "another tail"), Req("cold" * 6)
    loop.queue = [long, other, cold]
    assert [loop.step() for _ in range(3)] == [[long]] * 3
    assert loop.step() == [long, other]  # in the last page of the one, the other computes its own
    assert not Counter(page for computed in loop.computed for page in computed) - Counter(
        {*pages(long.prompt, 0, 40), *pages(other.prompt, 0, 40), *pages(cold.prompt, 0, 24)}
    )
    batches(loop)
    assert sum(map(len, loop.computed)) == 10 + 3 + 6


def test_a_last_chunk_with_room_is_not_joined_by_one_that_needs_it() -> None:
    loop = new_loop(tokens=6 * PAGE)
    long, same, other = Req(SHARED), Req(SHARED + "same"), Req("othe")
    loop.queue = [long, same, other]
    assert loop.step() == [long]
    assert loop.step() == [long, other]
    assert loop.step() == [same]


@pytest.mark.parametrize("options", [{"cache_salt": "a"}, {"extra_key": "lora"}])
def test_other_namespaces_share_nothing(options: dict[str, str]) -> None:
    loop = new_loop()
    loop.queue = [Req(SHARED), Req(SHARED, **options)]  # type: ignore[arg-type]
    assert len(loop.step()) == 2


def test_pages_that_are_computed_anyway_are_not_waited_for() -> None:
    """The last token always is, and every token whose logprob is asked for."""
    loop = new_loop()
    loop.queue = [Req("page"), Req("page"), Req("page"), Req(SHARED), Req(SHARED, most_prefix=PAGE - 1)]
    assert len(loop.step()) == 5


@pytest.mark.parametrize("cache", [Policy(disable=True), Policy(kind="swa"), Policy(kind="mamba")])
def test_caches_that_may_not_hold_it_later_are_left_alone(cache: Policy) -> None:
    loop = new_loop(cache)
    loop.queue = [Req(SHARED), Req(SHARED)]
    assert len(loop.step()) == 2


def random_prompt(chance: random.Random) -> str:
    """Of a few families whose members agree in one to six pages."""
    shared = chance.choice("abc") * PAGE + chance.choice("xy") * PAGE * chance.randint(0, 5)
    return shared + "".join(chance.choices("0123456789", k=chance.randint(1, 3 * PAGE)))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans())
def test_nothing_twice_nobody_idle_nobody_starved(
    seed: int, most_tokens: int, most: int, overlap: bool, spiteful: bool
) -> None:
    """Arrivals never end, what nobody runs on is evicted at will, and a spiteful cache forgets all of it after each
    batch. Queue and cache change under the group order as they may under SGLang."""
    chance = random.Random(seed)
    policy = Policy()
    order = GroupOrder(match)  # type: ignore[arg-type]
    loop = new_loop(policy, tokens=most_tokens * PAGE, requests=most, overlap=overlap, order=order)
    patience = LocalScheduler().patience
    limits: dict[Req, int] = {}
    slots = 0
    for step in range(150):
        for _ in range(chance.randint(0, 2 * most) if len(loop.queue) < 20 else 0):
            req = Req(random_prompt(chance), steps_to_run=chance.randint(0, 3))
            chunks = ceil(10 / most_tokens)
            limits[req] = slots + (len(loop.queue) + 1) * (patience + 1 + most * (1 + chunks + LAG))
            loop.queue.append(req)
        before = [page for req in loop.in_flight for page in pages(req.prompt, req.prefix_len, req.extend_end)]
        waiting = set(loop.queue)
        in_flight = bool(loop.in_flight)
        batch = loop.step()
        assert batch or in_flight or not waiting, f"idle at step {step}"
        times = Counter(loop.computed[-1]) + Counter(before)
        for req in batch:
            for page in pages(req.prompt, req.prefix_len, req.extend_end):
                assert times[page] == 1 or len(page) == len(req.prompt), f"{page} twice at step {step}"
        for req in batch:
            if req in waiting:
                slots += 1
                assert slots <= limits.pop(req)
        assert all(slots <= limit for limit in limits.values())
        if spiteful or chance.random() < 0.3:
            kept = [req.prompt for req in (*loop.running, *loop.in_flight)]
            if loop.chunked is not None:
                kept.append(loop.chunked.prompt)
            policy.evict("" if spiteful else chance.choice("abc"), but=kept)


@pytest.mark.sglang
@pytest.mark.timeout(300)
async def test_a_burst_at_a_real_engine_computes_its_prefix_once(tiny_model: Path) -> None:
    """With two tensor-parallel ranks, which hang unless they agree, and with overlapping steps."""
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed")
    from prebled.worker.sglang_engine import SGLangEngine

    async def cached(tp: int, **server_args: Any) -> list[list[int]]:
        """Of each prompt: first 16 that share nine blocks, then eight pairs, in one burst each."""
        engine = SGLangEngine(str(tiny_model), tp=tp, kv_tokens=32768, device="cpu", server_args=server_args)
        try:
            driver = Driver(engine, await engine.start(lambda text: None))
            bursts = [
                [prompt(1, 9 * BLOCK_TOKENS) + prompt(10 + number, 20) for number in range(16)],
                [prompt(100 + number // 2, 2 * BLOCK_TOKENS) + prompt(200 + number, 20) for number in range(16)],
            ]
            return [[outcome.cached_tokens for outcome in await driver.run(*burst, max_tokens=2)] for burst in bursts]
        finally:
            await engine.stop()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cached(2)), group.create_task(cached(1, disable_overlap_schedule=False))]
    for task in tasks:
        assert task.result() == [[0] + [9 * BLOCK_TOKENS] * 15, [0, 2 * BLOCK_TOKENS] * 8]
