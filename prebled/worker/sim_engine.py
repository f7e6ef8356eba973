"""The simulated engine behind the `Engine` protocol: `SimModel` on the event loop's clock, at a chosen speed.

For tests, for trying prebled without a GPU and for planning capacity; it says `sim` wherever it answers. A step's
outcome comes when the step is over. Nothing is decided here: what a step does and how long it takes is the model's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from prebled.core.cost import profile
from prebled.core.types import RunId
from prebled.errors import EngineFailed
from prebled.messages import Capacity, KvStored, Submit
from prebled.settings import SimSettings
from prebled.worker.engine import EngineLoad, EngineStep
from prebled.worker.sim_model import SimModel

MOST_LAG_S = 0.05
"""A loop that wakes us late makes up for it by shorter sleeps, up to so much."""


class SimEngine:
    """See `prebled.worker.engine.Engine`. Raises SettingsError for an unknown profile or impossible sizes."""

    def __init__(
        self,
        settings: SimSettings,
        block_tokens: int,
        *,
        model: str,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        queue_policy: str = "groups",
    ) -> None:
        """`settings.speed`: simulated seconds per second. `queue_policy`: `groups` or `fcfs`."""
        self._settings = settings
        self._model = SimModel(
            settings,
            block_tokens,
            model=model,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            cost=profile(settings.profile),
            queue_policy=queue_policy,
        )
        self._changed = asyncio.Event()
        self._step: EngineStep | None = None  # computed, and out when `_due` comes
        self._due = 0.0
        self._is_stopped = False

    async def start(self, report: Callable[[str], None]) -> Capacity:
        report(f"simulating {self._settings.profile} at {self._settings.speed:g}x")
        return self._model.capacity

    def submit_nowait(self, submits: Sequence[Submit]) -> None:
        if self._model.is_idle and self._step is None:
            self._due = asyncio.get_running_loop().time()  # idle time is not made up for
        self._model.submit(submits)
        self._changed.set()

    def abort_nowait(self, run_ids: Sequence[RunId]) -> None:
        self._model.abort(run_ids)
        self._changed.set()

    async def wait_step(self) -> EngineStep:
        # A caller that gives up waiting loses nothing: the step stays until somebody is there to take it.
        while self._step is None:
            await self._wait_work()
            self._begin_step()
        await asyncio.sleep(self._due - asyncio.get_running_loop().time())
        step, self._step = self._step, None
        return step

    def load(self) -> EngineLoad:
        return self._model.load()

    def set_namespace(self, model: str) -> None:
        self._model.set_namespace(model)

    def held(self) -> tuple[KvStored, ...]:
        # A step that is computed but not out yet is in here already; its changes come once more with it, and applying
        # them again leaves the same blocks.
        return self._model.held()

    async def stop(self) -> None:
        self._is_stopped = True
        self._changed.set()

    async def _wait_work(self) -> None:
        while not self._is_stopped and self._model.is_idle:
            self._changed.clear()
            await self._changed.wait()
        if self._is_stopped:
            raise EngineFailed("the simulated engine is stopped")

    def _begin_step(self) -> None:
        step, duration_s = self._model.step()
        earliest = asyncio.get_running_loop().time() - MOST_LAG_S
        self._due = max(self._due, earliest) + duration_s / self._settings.speed
        self._step = step
