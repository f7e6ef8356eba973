"""One engine, driven without a worker or a daemon around it: made-up prompts in, and who was served when."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import NamedTuple

import numpy as np

from prebled.core.types import RunId
from prebled.errors import EngineFailed
from prebled.messages import Sampling, StepSample, Submit
from prebled.worker.engine import Engine

FIRST_TOKEN_ID = 100
"""Smaller ids are left to special tokens."""


class Prompts:
    """Random prompts, as token ids in uint32 LE. A seed gives the same ones each time."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._chance = np.random.default_rng(seed)
        self._vocab_size = vocab_size

    def draw(self, tokens: int, after: bytes = b"") -> bytes:
        """So many new tokens behind a shared prefix."""
        ids = self._chance.integers(FIRST_TOKEN_ID, self._vocab_size, tokens, np.uint32)
        return after + ids.astype("<u4").tobytes()

    def pick(self, below: int) -> int:
        """A number from 0 on."""
        return int(self._chance.integers(below))


class First(NamedTuple):
    """The first token of a run: `slot` counts first tokens over all runs, from 0; `cached_tokens` of its prompt."""

    slot: int
    ttft_s: float
    cached_tokens: int


class EngineRuns:
    """Greedy runs of one engine, from their submission to their end."""

    def __init__(self, engine: Engine) -> None:
        self.firsts: dict[RunId, First] = {}
        self.samples: list[StepSample] = []
        self._engine = engine
        self._submitted_at: dict[RunId, float] = {}
        self._open: set[RunId] = set()

    def __len__(self) -> int:
        """Of those that have not ended."""
        return len(self._open)

    def submit(self, prompts: Iterable[tuple[bytes, int]]) -> list[RunId]:
        """Submit prompts, each with the number of tokens to make, at once and in order; their runs."""
        submits: list[Submit] = []
        for prompt, max_tokens in prompts:
            run_id = RunId(f"run-{len(self._submitted_at)}")
            self._submitted_at[run_id] = monotonic()
            submits.append(Submit(run_id, prompt, Sampling(max_tokens, temperature=0.0, ignore_eos=True)))
        run_ids = [submit.run_id for submit in submits]
        self._open.update(run_ids)
        self._engine.submit_nowait(submits)
        return run_ids

    async def wait_step(self) -> list[RunId]:
        """The runs that ended in the engine's next step. Raises EngineFailed, also for a run that failed."""
        step = await self._engine.wait_step()
        if step.failed:
            raise EngineFailed(f"{step.failed[0].run_id} failed: {step.failed[0].message}")
        self.samples += step.samples
        for chunk in step.chunks:
            if chunk.run_id not in self.firsts:
                ttft_s = monotonic() - self._submitted_at[chunk.run_id]
                self.firsts[chunk.run_id] = First(len(self.firsts), ttft_s, chunk.cached_tokens)
        ended = [done.run_id for done in step.done]
        self._open.difference_update(ended)
        return ended

    async def wait_all(self) -> None:
        """Until all have ended."""
        while self._open:
            await self.wait_step()
