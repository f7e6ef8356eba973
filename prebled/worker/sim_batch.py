"""Which runs compute in the next simulated step: continuous batching, chunked prefill, KV reservation and retraction.

It imitates SGLang 0.5.23 (`PrefillAdder`, `ScheduleBatch.retract_decode`): prompts, begun ones first, get at most a
chunk budget each step; a waiting run is admitted when its prompt and the expected output fit beside those of the
running ones; when decoding finds no free block, the run admitted last goes back to the queue and loses its KV. With
mixed chunks (`--enable-mixed-chunk`) every decoding run makes one token a step and prompts get what it leaves of the
budget; without them, SGLang's own default, prompts go first and nobody decodes in a step that computes some. Where
priority groups order the queue, a run waits while another computes its next block, as on our workers (`sim_gate`).
Simplifications: a run's whole prompt is reserved at admission, the victim is the youngest where SGLang takes the one
with the fewest output tokens (mostly the same one), chunks need not end at a block, and a full batch is looked at again
at each step.

Steps that only decode, one after another, are planned as one jump for as long as nothing can come between them: no run
ends, no block has to be evicted for them, nobody can be admitted. The queue is put in order only when somebody could
be admitted; who was first and did not fit is asked again, alone, until something has changed.

It does not know tokens, durations or time: `SimRun` counts, and says which hashes its blocks have.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf
from typing import final

from prebled.core.local_scheduler import LocalScheduler
from prebled.core.types import RunId
from prebled.worker.engine import EngineLoad
from prebled.worker.sim_cache import BlockCache
from prebled.worker.sim_decodes import Decodes
from prebled.worker.sim_gate import BlockGate
from prebled.worker.sim_queue import SimQueue
from prebled.worker.sim_run import SimRun, StepEnd, StepPlan

# SGLang's expectation of how much of its max_tokens a run will use (environ.py: SGLANG_INIT_NEW_TOKEN_RATIO,
# _MIN_NEW_TOKEN_RATIO_FACTOR, _NEW_TOKEN_RATIO_DECAY_STEPS, _RETRACT_DECODE_STEPS, _CLIP_MAX_NEW_TOKENS_ESTIMATION).
FIRST_RATIO = 0.7
LEAST_RATIO = 0.7 * 0.14
RATIO_DECAY = (FIRST_RATIO - LEAST_RATIO) / 600
RETRACT_STEPS = 20
MOST_EXPECTED_TOKENS = 4096


@final
class SimBatch:
    """The runs of one simulated engine, waiting and running, and the KV cache they share."""

    def __init__(
        self,
        *,
        kv_blocks: int,
        block_tokens: int,
        chunk_tokens: int,
        max_running: int,
        queue: LocalScheduler | None,
        mixed_chunks: bool = True,
        tells_changes: bool = False,
    ) -> None:
        """`queue` orders the waiting runs, and no block is computed twice at once then; None takes them as they came.
        `mixed_chunks`: whether a step can compute prompts and decode. `tells_changes`: of the cache."""
        self.cache = BlockCache(kv_blocks, tells_changes=tells_changes)
        self.decodes = Decodes(block_tokens)
        self.retractions = 0
        self._block_tokens = block_tokens
        self._chunk_tokens = chunk_tokens
        self._max_running = max_running
        self._mixed_chunks = mixed_chunks
        self._has_gate = queue is not None
        self._waiting = SimQueue(self.cache, block_tokens, queue)
        self._running: dict[RunId, SimRun] = {}  # in order of admission
        self._begun: dict[RunId, SimRun] = {}  # of those, the ones that do not decode yet
        self._arrivals = 0
        self._admissions = 0
        self._ratio = FIRST_RATIO
        self._stuck: SimRun | None = None  # was first in the queue and did not fit
        self._stuck_moves = 0
        self._lacking_tokens = 0.0  # how much room it lacked

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def is_full(self) -> bool:
        """Whether nobody can be admitted before a running run ends."""
        return len(self._running) >= self._max_running

    def get(self, run_id: RunId) -> SimRun | None:
        return self._running.get(run_id) or self._waiting.get(run_id)

    def load(self, steps: int = 0) -> EngineLoad:
        """As of now; `steps`: so many of the steps planned are made."""
        blocks = self.cache.held_blocks + (self.decodes.growth_of(steps - 1) if steps > 1 else 0)
        return EngineLoad(
            queued=len(self._waiting), running=len(self._running), kv_used_tokens=blocks * self._block_tokens
        )

    def add(self, run: SimRun) -> None:
        """Queue a run whose prompt and output fit into the whole KV cache."""
        needed = self._blocks(run.prompt_tokens + run.max_tokens - 1)
        assert needed <= self.cache.total_blocks, f"run {run.run_id} needs {needed} of {self.cache.total_blocks} blocks"
        assert self.get(run.run_id) is None, f"run {run.run_id} is here already"
        run.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.add(run)
        self._stuck = None

    def end(self, run: SimRun) -> None:
        """Take a run out, at its end or aborted. Its full blocks stay in the cache, unpinned."""
        if self._waiting.get(run.run_id) is not None:
            self._waiting.remove(run)
        else:
            del self._running[run.run_id]
            self._stop_computing(run)
            self._share(run)
            self._release(run)
        self._stuck = None
        if not self._waiting and not self._running:
            self._ratio = FIRST_RATIO

    def plan(self, most_steps: int = 1) -> StepPlan:
        """The next step's work, with all the KV it needs taken; at most `most_steps` that are alike at once."""
        prefills: list[tuple[SimRun, int]] = []
        if not self._mixed_chunks:
            self._choose_prompts(self._chunk_tokens, prefills)
            if prefills:
                return StepPlan(prefills, 0, 0, 1)
        self._grow()
        sequences, context_tokens = len(self.decodes), self.decodes.context_tokens
        if self._mixed_chunks:
            self._choose_prompts(self._chunk_tokens - sequences, prefills)
        steps = 1 if prefills or not sequences or most_steps <= 1 else self._equal_steps(most_steps)
        return StepPlan(prefills, sequences, context_tokens, steps)

    def commit(self, plan: StepPlan, steps: int = 1) -> StepEnd:
        """So many of the steps planned are over: book what they computed."""
        if steps > 1:
            self.cache.take(self.decodes.growth_of(steps - 1))
            self._decay(steps - 1)
        through = self.decodes.advance(steps) if plan.sequences else []
        begun = []
        for run, tokens in plan.prefills:
            run.computed += tokens
            self._share(run)
            if run.computed == run.length:
                del self._begun[run.run_id]
                run.output_tokens += 1
                begun.append(run)
                if run.output_tokens < run.max_tokens:
                    self.decodes.join(run)
                else:
                    through.append(run)
        return StepEnd(begun, through)

    def check_invariants(self) -> None:
        """AssertionError if blocks were lost or taken twice. For tests; not between a plan and its commit."""
        self.cache.check_invariants()
        self.decodes.check_invariants()
        assert self.cache.private_blocks == sum(self.decodes.private_blocks(run) for run in self._running.values())
        for run in self._begun.values():
            assert run.node is not None
            assert run.node.depth + run.private_blocks >= self._blocks(run.computed)
            assert run.computed < run.length
        assert self._running.keys() == self._begun.keys() | self.decodes.runs.keys()
        assert not any(run.node or run.private_blocks or run.computed for run in self._waiting)
        assert not any(run.watch for run in self._running.values())
        assert len(self._running) <= self._max_running

    # --- decoding ---

    def _grow(self) -> None:
        """Take a block for each decoding run whose next token needs one; retracts until those are to be had."""
        while (blocks := self.decodes.growth()) > self.cache.available_blocks:
            self._retract()
        if blocks:
            self.cache.take(blocks)
        if self.decodes:
            self._decay(1)

    def _decay(self, steps: int) -> None:
        self._ratio = max(self._ratio - steps * RATIO_DECAY, LEAST_RATIO)

    def _retract(self) -> None:
        """The youngest run goes back to the queue; what it shared stays in the cache, the rest is lost."""
        _, run = self._running.popitem()
        self.retractions += 1
        self._stop_computing(run)
        self._release(run)
        run.computed = 0
        self._waiting.add(run)
        self._stuck = None
        made = sum(self.decodes.output_tokens(run) for run in self._running.values())
        asked = sum(run.max_tokens for run in self._running.values())
        self._ratio = min(1.0, (made + RETRACT_STEPS * len(self._running)) / (asked + 1))

    def _equal_steps(self, most: int) -> int:
        """How many steps like the one just planned, which only decodes, can follow one another."""
        most = min(most, self.decodes.steps_to_end())
        if self._begun:
            return 1
        if self._waiting and not self.is_full:
            most = min(most, self._steps_without_room())
        return self.decodes.steps_within(self.cache.free_blocks, most) if most > 1 else most

    def _steps_without_room(self) -> int:
        """For how many steps the first in the queue will certainly not fit. Room comes only from the tokens that are
        expected of the running ones no longer; every block that these take leaves less."""
        if self._stuck is None:
            return 1
        if self._lacking_tokens == inf:
            return self.decodes.steps_to_end()
        open_ended = sum(
            min(run.max_tokens, MOST_EXPECTED_TOKENS) for run in self._running.values() if not run.fixed_length
        )
        return max(ceil(self._lacking_tokens / (len(self.decodes) + RATIO_DECAY * open_ended)), 1)

    # --- prompts ---

    def _choose_prompts(self, budget: int, prefills: list[tuple[SimRun, int]]) -> None:
        if self._begun:
            budget = self._fill(self._begun.values(), budget, prefills)
        if self._waiting and budget > 0 and not self.is_full:
            self._admit_and_fill(budget, prefills)

    def _fill(self, runs: Iterable[SimRun], budget: int, prefills: list[tuple[SimRun, int]]) -> int:
        """Give each run as much of the budget as it can use; what is left of it."""
        for run in runs:
            tokens = min(run.length - run.computed, budget)
            if tokens > 0:
                prefills.append((run, tokens))
                budget -= tokens
        return budget

    def _admit_and_fill(self, budget: int, prefills: list[tuple[SimRun, int]]) -> None:
        expected = self._expected_tokens()
        if self._stuck is not None and self._stuck_moves == self.cache.watches.moves:
            self._lacking_tokens = self._lacks_room(self._stuck, expected)
            if self._lacking_tokens > 0:
                return
        self._stuck = None
        gate = BlockGate(self._block_tokens, self._begun.values())
        waiting = self._waiting.in_order()
        for run in gate.let_through(waiting, self._waiting.awaited) if self._has_gate else waiting:
            if budget <= 0 or self.is_full:
                return
            lacking = self._lacks_room(run, expected)
            if lacking > 0:
                if not prefills:
                    self._stuck, self._stuck_moves, self._lacking_tokens = run, self.cache.watches.moves, lacking
                return
            self._admit(run)
            gate.admit(run)
            expected += min(run.max_tokens - run.output_tokens, MOST_EXPECTED_TOKENS)
            budget = self._fill([run], budget, prefills)

    def _expected_tokens(self) -> float:
        """Output tokens that the running runs are expected still to make."""
        step, ratio = self.decodes.step, self._ratio
        expected = 0.0
        for run in self._running.values():
            left = run.max_tokens - run.output_tokens
            if run.since >= 0:
                left -= step - run.since
            left = min(left, MOST_EXPECTED_TOKENS)
            expected += left if run.fixed_length else left * ratio
        return expected

    def _lacks_room(self, run: SimRun, expected_tokens: float) -> float:
        """How many tokens of room are missing for what is not cached of the run and the output expected of all; not
        above 0: it fits. A run alone always fits: `add` has seen to that."""
        node = self._waiting.cached(run)
        left = self.cache.available_blocks - self.cache.unpinned_on_path(node)
        left -= self._blocks(run.length) - node.depth
        if left < 0:
            return inf
        if not self._running:
            return 0.0
        wanted = min(run.max_tokens - run.output_tokens, MOST_EXPECTED_TOKENS) + expected_tokens + self._block_tokens
        return wanted - left * self._block_tokens

    def _admit(self, run: SimRun) -> None:
        """Pin what is cached of the run and take blocks for the rest of its prompt."""
        node = self._waiting.cached(run)
        self.cache.pin(node)
        self._waiting.remove(run)
        needed = self._blocks(run.length) - node.depth
        self.cache.take(needed)
        run.node, run.private_blocks = node, needed
        run.computed = node.depth * self._block_tokens
        if not run.output_tokens:
            run.cached_tokens = run.computed
        run.admitted = self._admissions
        self._admissions += 1
        self._running[run.run_id] = self._begun[run.run_id] = run

    def _share(self, run: SimRun) -> None:
        """Put the run's computed full blocks into the tree."""
        assert run.node is not None
        full = run.computed // self._block_tokens
        depth = run.node.depth
        if full <= depth:
            return
        run.cover(full)
        run.private_blocks -= full - depth
        run.node = self.cache.extend(run.node, run.path, full)

    def _stop_computing(self, run: SimRun) -> None:
        if run.is_decoding:
            self.decodes.leave(run)
        else:
            self._begun.pop(run.run_id, None)  # not there: its only token came with its prompt

    def _release(self, run: SimRun) -> None:
        assert run.node is not None
        self.cache.unpin(run.node)
        self.cache.give(run.private_blocks)
        run.node, run.private_blocks = None, 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)
