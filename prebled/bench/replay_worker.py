"""A worker in virtual time: the simulated engine's batch, and what a daemon would hear of it when.

It owns its runs and the steps in progress; the replay owns time and calls it when something is due. What it tells are
the events that the daemon makes of a worker's messages: the first token, every 16th one after it, the end. It knows
nothing of other workers, policies or traces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from prebled.bench.replay_request import ReplayRequest, ReplayRun
from prebled.core.cost import CostModel
from prebled.core.events import AnyEvent, FirstToken, RequestFinished, TokensMade
from prebled.core.types import WorkerId
from prebled.messages import Capacity, KvChange
from prebled.worker.engine import EngineLoad
from prebled.worker.sim_batch import SimBatch
from prebled.worker.sim_cost import jump_seconds, step_seconds, steps_until
from prebled.worker.sim_run import StepPlan

TOKENS_PER_EVENT = 16
"""As in `daemon.runtime`."""


@final
class ReplayWorker:
    """`step_ends_at`: when `take_step` is due, None while it has nothing to do. `prefilled_tokens`: prompt tokens that
    it has computed so far, those computed again after a retraction included. `busy_s`: seconds that its steps took."""

    def __init__(
        self,
        worker_id: WorkerId,
        batch: SimBatch,
        cost: CostModel,
        capacity: Capacity,
        tell: Callable[[AnyEvent], None],
        *,
        jumps: bool = True,
    ) -> None:
        """`tell` hears the events, at the time that `take_step` was given. `jumps`: whether steps that are alike are
        made at once; the outcome is the same."""
        self.worker_id = worker_id
        self.capacity = capacity
        self.batch = batch
        self.step_ends_at: float | None = None
        self.prefilled_tokens = 0
        self.busy_s = 0.0
        self._cost = cost
        self._tell = tell
        self._jumps = jumps
        self._plan: StepPlan | None = None
        self._steps = 0
        self._started_at = 0.0
        # By the decoding step, modulo 16, at which a run has made a multiple of 16 tokens. Runs that have left, or
        # were retracted in between, are still found here, and dropped then.
        self._marks: list[dict[ReplayRun, None]] = [{} for _ in range(TOKENS_PER_EVENT)]
        self._aborted: list[ReplayRun] = []

    def submit(self, run: ReplayRun, now: float) -> None:
        """Queue a run. Steps in progress end with the one that is computed now, so that it can join the next."""
        self.batch.add(run)
        plan = self._plan
        if plan is None:
            self.step_ends_at = now
        elif self._steps > 1 and not self.batch.is_full:
            self._cut(plan, now)

    def abort(self, run: ReplayRun, now: float) -> None:
        """End a run at the end of the step that is computed now. Nothing more is told of it."""
        run.is_lost = True
        self._aborted.append(run)
        plan = self._plan
        if plan is None:
            self.step_ends_at = now
        elif self._steps > 1:
            self._cut(plan, now)

    def take_step(self, now: float) -> list[ReplayRequest]:
        """The steps in progress, if there are any, are over: tell what came of them and begin the next. The requests
        that have ended."""
        through: list[ReplayRequest] = []
        if self._plan is not None:
            through = self._finish_steps(self._plan, now)
        for run in self._aborted:
            if self.batch.get(run.run_id) is run:
                self.batch.end(run)
        self._aborted.clear()
        self._begin_steps(now)
        return through

    def load(self, now: float) -> EngineLoad:
        """As of now."""
        plan = self._plan
        if plan is None or self._steps == 1:
            return self.batch.load()
        return self.batch.load(steps_until(self._cost, plan, now - self._started_at))

    @property
    def has_changes(self) -> bool:
        """Whether the cache has changed since the last call of `take_changes`."""
        return self.batch.cache.has_changes

    def take_changes(self) -> tuple[KvChange, ...]:
        """How the cache has changed since the last call."""
        return self.batch.cache.take_changes()

    def _begin_steps(self, now: float) -> None:
        batch = self.batch
        self._plan = self.step_ends_at = None
        if not batch:
            return
        plan = batch.plan(self._steps_to_mark() if self._jumps else 1)
        for run, tokens in plan.prefills:
            self.prefilled_tokens += tokens
            assert isinstance(run, ReplayRun)
            if run.request.started_at < 0:
                run.request.started_at = now
        self._plan, self._steps, self._started_at = plan, plan.steps, now
        seconds = step_seconds(self._cost, plan) if plan.steps == 1 else jump_seconds(self._cost, plan, plan.steps)
        self.step_ends_at = now + seconds

    def _cut(self, plan: StepPlan, now: float) -> None:
        self._steps = min(self._steps, steps_until(self._cost, plan, now - self._started_at))
        self.step_ends_at = self._started_at + jump_seconds(self._cost, plan, self._steps)

    def _finish_steps(self, plan: StepPlan, now: float) -> list[ReplayRequest]:
        self.busy_s += now - self._started_at
        decodes = self.batch.decodes
        end = self.batch.commit(plan, self._steps)
        if plan.sequences and (marked := self._marks[decodes.step % TOKENS_PER_EVENT]):
            self._tell_marked(marked)
        for run in end.begun:
            assert isinstance(run, ReplayRun)
            if not run.is_lost:
                self._tell_begun(run, now)
            if run.is_decoding:
                self._marks[(decodes.step - run.output_tokens) % TOKENS_PER_EVENT][run] = None
        through = []
        for run in end.through:
            assert isinstance(run, ReplayRun)
            self.batch.end(run)
            if not run.is_lost:
                run.request.finished_at = now
                self._tell(RequestFinished(run.request.request_id, run.output_tokens))
                through.append(run.request)
        return through

    def _tell_marked(self, marked: dict[ReplayRun, None]) -> None:
        decodes = self.batch.decodes
        for run in list(marked):
            output_tokens = decodes.output_tokens(run)
            if not run.is_decoding or run.is_lost or output_tokens % TOKENS_PER_EVENT:
                del marked[run]
            else:
                self._tell(TokensMade(run.request.request_id, output_tokens))

    def _tell_begun(self, run: ReplayRun, now: float) -> None:
        request = run.request
        if run.output_tokens == 1:
            if request.first_token_at < 0:
                request.first_token_at = now
                request.cached_tokens = run.cached_tokens
            self._tell(FirstToken(request.request_id, run.cached_tokens))
        elif not run.output_tokens % TOKENS_PER_EVENT:
            self._tell(TokensMade(request.request_id, run.output_tokens))

    def _steps_to_mark(self) -> int:
        """Decoding steps until something is to be told of a run."""
        marks, step = self._marks, self.batch.decodes.step
        for steps in range(1, TOKENS_PER_EVENT):
            if marks[(step + steps) % TOKENS_PER_EVENT]:
                return steps
        return TOKENS_PER_EVENT
