"""The simulated engine on the loop's clock: its pace, and what waiting for it promises."""

from __future__ import annotations

import asyncio
import time

import pytest
from sim_runs import COST, EOS_TOKEN_IDS, VOCAB_SIZE, expected_tokens, prompt, submit

from prebled.errors import EngineFailed, SettingsError
from prebled.settings import SimSettings
from prebled.worker.sim_engine import SimEngine


def sim_engine(speed: float, profile: str = "mistral-7b-a6000") -> SimEngine:
    settings = SimSettings(speed=speed, profile=profile)
    return SimEngine(settings, 16, model="m", vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS)


async def tokens_of_one_run(engine: SimEngine, most_steps: int = 1000) -> list[int]:
    tokens: list[int] = []
    for _ in range(most_steps):
        step = await engine.wait_step()
        tokens += [token for chunk in step.chunks for token in chunk.tokens]
        if step.done:
            return tokens
    raise AssertionError("the run does not end")


async def test_it_takes_the_profiles_time_over_the_speed() -> None:
    engine = sim_engine(speed=10)
    await asyncio.sleep(0.2)  # idle time is not made up for
    run = submit("a", prompt(1, 1000), 41)
    before = time.monotonic()  # before the engine's own clock starts, at the submission
    engine.submit_nowait([run])
    await engine.wait_step()
    assert time.monotonic() - before >= COST.prefill_step_s(1000, 1000) / 10 - 0.001
    await tokens_of_one_run(engine)
    simulated = COST.prefill_step_s(1000, 1000) + sum(COST.decode_step_s(1, 1000 + n) for n in range(1, 41))
    assert simulated / 10 == pytest.approx(time.monotonic() - before, rel=0.25, abs=0.05)


async def test_however_fast_it_lets_others_run() -> None:
    engine = sim_engine(speed=1e9)
    engine.submit_nowait([submit("a", prompt(1, 10), 500)])
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count_turns())
    await tokens_of_one_run(engine)
    counting.cancel()
    assert turns >= 400


async def test_giving_up_a_wait_loses_no_token() -> None:
    engine = sim_engine(speed=2)
    engine.submit_nowait([submit("a", prompt(1, 100), 30)])
    tokens: list[int] = []
    given_up = 0
    while len(tokens) < 30:
        try:
            async with asyncio.timeout(0.002):
                step = await engine.wait_step()
        except TimeoutError:
            given_up += 1
        else:
            tokens += [token for chunk in step.chunks for token in chunk.tokens]
    assert given_up > 10
    assert tokens == expected_tokens(prompt(1, 100), 30)


async def test_stopping_ends_the_wait() -> None:
    engine = sim_engine(speed=1)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_outcome(engine))
        await asyncio.sleep(0)
        await engine.stop()
        await engine.stop()
    assert isinstance(waiting.result(), EngineFailed)


async def _outcome(engine: SimEngine) -> object:
    try:
        return await engine.wait_step()
    except EngineFailed as error:
        return error


async def test_an_unknown_profile_is_named_with_the_known() -> None:
    with pytest.raises(SettingsError, match=r"abacus.*mistral-7b-a6000"):
        sim_engine(1, profile="abacus")
