"""What SGLang's steps cost: measured inside its scheduler, fitted, and predicted for steps that the fit has not had."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from statistics import median

import pytest
import pytest_asyncio
from engine_driver import BLOCK_TOKENS, Driver, prompt, submit

from prebled.core.cost import PROFILES
from prebled.core.cost_fit import CostFit, expected_s
from prebled.messages import StepSample
from prebled.worker.engine import EngineStep

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="module")]

CHUNK_TOKENS = 512
PARTS = 5
RUNS_PER_PART = 40


class Measured(Driver):
    """Keeps the samples of the steps that it reads."""

    samples: list[StepSample]

    async def step(self) -> EngineStep:
        step = await super().step()
        self.samples += step.samples
        return step

    async def take_samples(self, prompt_tokens: int, decoded_tokens: int) -> list[StepSample]:
        """The steps since the last call, when those that computed so much have been reported."""
        await self.wait(
            lambda: (
                sum(sample.new_tokens for sample in self.samples) >= prompt_tokens
                and sum(sample.sequences for sample in self.samples) >= decoded_tokens
            )
        )
        samples, self.samples = self.samples, []
        assert sum(sample.new_tokens for sample in samples) == prompt_tokens
        assert sum(sample.sequences for sample in samples) == decoded_tokens
        return samples


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(tiny_model: Path) -> AsyncIterator[Measured]:
    """An engine with room for all of the runs here."""
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed")
    from prebled.worker.sglang_engine import SGLangEngine

    engine = SGLangEngine(
        str(tiny_model),
        block_tokens=BLOCK_TOKENS,
        kv_tokens=131_072,
        context_tokens=4096,
        device="cpu",
        server_args={"max_running_requests": 16, "chunked_prefill_size": CHUNK_TOKENS},
        measure_s=60.0,  # all rounds, however busy the machine
    )
    driver = Measured(engine, await engine.start(lambda text: None))
    driver.samples = []
    yield driver
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(driver: Measured) -> list[StepSample]:
    """The steps that the engine measured as it started."""
    await driver.step()
    samples, driver.samples = driver.samples, []
    return samples


async def test_a_start_measures_steps_and_leaves_nothing_in_the_cache(
    driver: Measured, started: list[StepSample]
) -> None:
    assert {sample.sequences for sample in started} >= {1, 2, 4, 16}
    assert any(sample.new_tokens > 100 for sample in started)
    assert driver.engine.held() == ()
    await driver.wait_load(lambda load: load.kv_used_tokens == 0)


async def test_chunks_and_cached_prefixes_are_counted_as_computed(driver: Measured) -> None:
    asked = prompt(1, 2 * CHUNK_TOKENS + 100)
    await driver.run(asked, max_tokens=3)
    first, second, third, *decodes = await driver.take_samples(len(asked), 2)
    assert [one.new_tokens for one in (first, second, third)] == [CHUNK_TOKENS, CHUNK_TOKENS, 100]
    assert [one.prompt_context_tokens for one in (first, second, third)] == [CHUNK_TOKENS, 2 * CHUNK_TOKENS, len(asked)]
    assert [one.attention for one in (first, third)] == [CHUNK_TOKENS**2, 100 * len(asked)]
    assert [(one.sequences, one.context_tokens) for one in decodes] == [(1, len(asked) + 1), (1, len(asked) + 2)]
    [again] = await driver.run(asked, max_tokens=1)
    new_tokens = len(asked) - again.cached_tokens
    [step] = await driver.take_samples(new_tokens, 0)
    assert (step.new_tokens, step.prompt_context_tokens) == (new_tokens, len(asked))
    assert step.attention == new_tokens * len(asked)


async def test_the_parts_of_a_step_add_up(driver: Measured) -> None:
    """And idle time counts to none: a pause of the client's would be the longest step by far."""
    await driver.run(*(prompt(10 + index, 200) for index in range(8)), max_tokens=8)
    for sample in await driver.take_samples(1600, 56):
        assert 0 < sample.model_s < sample.step_s
        assert 0 <= sample.order_s < sample.step_s
        assert sample.model_s + sample.order_s <= sample.step_s


async def test_steps_that_the_fit_has_not_seen_are_predicted(
    driver: Measured, started: list[StepSample], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts and outputs of mixed lengths, a changing number at a time. Every step is predicted from those before it,
    the measurement at the start being the first, and only then shown to the fit.

    All errors are printed; what is judged is the best of the parts, since no model of the work can know what a
    neighbour on the same cores will do next."""
    rng = random.Random(7)
    fit = CostFit(PROFILES["tiny-cpu"])
    for sample in started:
        fit.add(sample)
    parts = []
    for _ in range(PARTS):
        errors = []
        for sample in await _mixed_steps(driver, rng):
            errors.append(abs(expected_s(fit.present(), sample) / sample.step_s - 1))
            fit.add(sample)
        parts.append(errors)
    medians = [median(errors) for errors in parts]
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{fit.samples} steps; median relative error of step_s {median(chain(*parts)):.3f}; "
            f"part by part: {', '.join(f'{error:.3f}' for error in medians)}"
        )
    assert fit.ignored == 0
    assert min(medians) <= 0.15


async def _mixed_steps(driver: Measured, rng: random.Random) -> list[StepSample]:
    open_runs: list[str] = []
    prompt_tokens = decoded_tokens = 0
    for _ in range(RUNS_PER_PART):
        while len(open_runs) >= rng.choice((1, 2, 4, 8, 16)):
            await driver.step()
            open_runs = [name for name in open_runs if driver.outcomes[name].end is None]
        name, tokens, output_tokens = driver.new_id(), int(2 ** rng.uniform(4, 11)), rng.randrange(2, 40)
        driver.submit(submit(name, prompt(rng.randrange(10**6), tokens), output_tokens, cache_salt=name))
        open_runs.append(name)
        prompt_tokens += tokens
        decoded_tokens += output_tokens - 1
    await driver.wait_ends(*open_runs)
    return await driver.take_samples(prompt_tokens, decoded_tokens)
