"""A driver that holds every run of an engine to the contract, and the runs that the tests give it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from naive_cache import NaiveCache

from prebled.core.types import RunId
from prebled.messages import Capacity, Sampling, Submit
from prebled.tiny_model import VOCAB_SIZE
from prebled.worker.engine import Engine, EngineLoad, EngineStep, RunDone, RunFailed
from prebled.worker.validate import check_submit

BLOCK_TOKENS = 64


def submit(run_id: str, prompt: list[int], max_tokens: int = 16, *, cache_salt: str = "", **sampling: Any) -> Submit:
    """A run; greedy and deaf to end-of-sequence tokens unless told otherwise."""
    chosen = Sampling(max_tokens, **{"temperature": 0.0, "ignore_eos": True, **sampling})
    return Submit(RunId(run_id), np.asarray(prompt, dtype="<u4").tobytes(), chosen, cache_salt)


@dataclass
class Outcome:
    """What was seen of one run."""

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    cached_tokens: int = -1
    end: RunDone | RunFailed | None = None

    @property
    def done(self) -> RunDone:
        assert isinstance(self.end, RunDone), self.end
        return self.end


class Driver:
    """Submits runs and reads steps, checking for each run what the contract says of all."""

    def __init__(self, engine: Engine, capacity: Capacity) -> None:
        self.engine = engine
        self.capacity = capacity
        self.outcomes: dict[str, Outcome] = {}
        self.told = NaiveCache(engine.held())  # what the cache holds, by the engine's own reports since
        self._ids = 0

    def set_namespace(self, model: str) -> None:
        """Block hashes start from this name; all that is held is told anew."""
        self.engine.set_namespace(model)
        self.told = NaiveCache(self.engine.held())

    def new_id(self) -> str:
        self._ids += 1
        return f"r{self._ids}"

    def submit(self, *submits: Submit) -> None:
        for one in submits:
            assert check_submit(one, self.capacity) is None
            assert one.run_id not in self.outcomes
            self.outcomes[one.run_id] = Outcome(len(one.tokens) // 4)
        self.engine.submit_nowait(submits)

    async def step(self) -> EngineStep:
        step = await self.engine.wait_step()
        for change in step.kv:
            self.told.apply(change)
        for chunk in step.chunks:
            outcome = self.outcomes[chunk.run_id]
            assert outcome.end is None, "tokens after the end"
            assert chunk.tokens
            first = not outcome.tokens
            assert (chunk.cached_tokens >= 0) == first, "cached tokens belong on the first chunk, and only there"
            if first:
                outcome.cached_tokens = chunk.cached_tokens
            outcome.tokens += chunk.tokens
        for end in (*step.done, *step.failed):
            outcome = self.outcomes[end.run_id]
            assert outcome.end is None, "a run ended twice"
            outcome.end = end
            if isinstance(end, RunDone):
                assert end.output_tokens == len(outcome.tokens)
                assert end.prompt_tokens == outcome.prompt_tokens
                assert end.cached_tokens == max(outcome.cached_tokens, 0)
        return step

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Read steps until the condition holds."""
        while not condition():
            await self.step()

    async def step_until_tokens(self, run_id: str) -> None:
        """Read steps until this run has brought tokens."""
        await self.wait(lambda: bool(self.outcomes[run_id].tokens))

    async def wait_ends(self, *run_ids: str) -> None:
        await self.wait(lambda: all(self.outcomes[run_id].end is not None for run_id in run_ids))

    async def run(self, *prompts: list[int], **options: Any) -> list[Outcome]:
        """Run these prompts beside each other, to the end."""
        submits = [submit(self.new_id(), prompt, **options) for prompt in prompts]
        self.submit(*submits)
        await self.wait_ends(*(one.run_id for one in submits))
        return [self.outcomes[one.run_id] for one in submits]

    async def wait_load(self, condition: Callable[[EngineLoad], bool]) -> EngineLoad:
        """Wait until the engine reports such a load, for at most five seconds."""
        for _ in range(500):
            load = self.engine.load()
            if condition(load):
                return load
            await asyncio.sleep(0.01)
        raise AssertionError(f"the load stayed {self.engine.load()}")


def prompt(seed: int, tokens: int) -> list[int]:
    """A random prompt without special tokens; another seed gives another first token, so nothing is shared."""
    ids = np.random.default_rng(seed).integers(100, VOCAB_SIZE, tokens)
    ids[0] = 100 + seed % (VOCAB_SIZE - 100)
    return [int(one) for one in ids]
