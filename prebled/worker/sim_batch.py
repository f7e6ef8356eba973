"""Which runs compute in the next simulated step: continuous batching, chunked prefill, KV reservation and retraction.

It imitates SGLang 0.5.23 (`PrefillAdder`, `ScheduleBatch.retract_decode`, mixed chunks): every decoding run makes one
token a step; what the chunk budget leaves goes to prompts, begun ones first; a waiting run is admitted when its prompt
and the expected output fit beside those of the running ones; when decoding finds no free block, the run admitted last
goes back to the queue and loses its KV. Two simplifications: a run's whole prompt is reserved at admission, and the
victim is the youngest where SGLang takes the one with the fewest output tokens (mostly the same one).

It does not know tokens, durations or time: `SimRun` counts, and says which hashes its blocks have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import final

from prebled.core.blocks import cacheable_blocks
from prebled.core.local_scheduler import LocalScheduler, Waiting
from prebled.core.types import RunId
from prebled.worker.engine import EngineLoad
from prebled.worker.sim_cache import BlockCache, CacheBlock
from prebled.worker.sim_run import SimRun, StepPlan, is_decoding

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
        self, *, kv_blocks: int, block_tokens: int, chunk_tokens: int, max_running: int, queue: LocalScheduler | None
    ) -> None:
        """`queue` orders the waiting runs; None takes them as they came."""
        self.cache = BlockCache(kv_blocks)
        self.retractions = 0
        self._block_tokens = block_tokens
        self._chunk_tokens = chunk_tokens
        self._max_running = max_running
        self._queue = queue
        self._waiting: dict[RunId, SimRun] = {}
        self._running: dict[RunId, SimRun] = {}  # in order of admission
        self._arrivals = 0
        self._ratio = FIRST_RATIO

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def get(self, run_id: RunId) -> SimRun | None:
        return self._running.get(run_id) or self._waiting.get(run_id)

    def load(self) -> EngineLoad:
        return EngineLoad(
            queued=len(self._waiting),
            running=len(self._running),
            kv_used_tokens=self.cache.held_blocks * self._block_tokens,
        )

    def add(self, run: SimRun) -> None:
        """Queue a run whose prompt and output fit into the whole KV cache."""
        needed = self._blocks(run.prompt_tokens + run.max_tokens - 1)
        assert needed <= self.cache.total_blocks, f"run {run.run_id} needs {needed} of {self.cache.total_blocks} blocks"
        assert self.get(run.run_id) is None, f"run {run.run_id} is here already"
        run.arrival = self._arrivals
        self._arrivals += 1
        self._waiting[run.run_id] = run

    def end(self, run: SimRun) -> None:
        """Take a run out, at its end or aborted. Its full blocks stay in the cache, unpinned."""
        if self._waiting.pop(run.run_id, None) is None:
            del self._running[run.run_id]
            self._share(run)
            self._release(run)
        if not self._waiting and not self._running:
            self._ratio = FIRST_RATIO

    def plan(self) -> StepPlan:
        """The next step's work, with all the KV it needs taken."""
        decodes = self._grow()
        begun = [run for run in self._running.values() if not is_decoding(run)]
        prefills: list[tuple[SimRun, int]] = []
        budget = self._fill(begun, self._chunk_tokens - len(decodes), prefills)
        if budget > 0 and self._waiting and len(self._running) < self._max_running:
            self._admit_and_fill(budget, prefills)
        return StepPlan(prefills, decodes)

    def commit(self, plan: StepPlan) -> list[SimRun]:
        """The step is over: book what it computed. The runs that made a token, decoding ones first.

        The caller counts the token on each of them, and ends those that are through, before the next `plan`.
        """
        for run, tokens in plan.prefills:
            run.computed += tokens
            self._share(run)
        for run in plan.decodes:
            run.computed += 1
        return [*plan.decodes, *(run for run, _ in plan.prefills if run.computed == run.length)]

    def check_invariants(self) -> None:
        """AssertionError if blocks were lost or taken twice. For tests."""
        self.cache.check_invariants()
        assert self.cache.private_blocks == sum(run.private_blocks for run in self._running.values())
        for run in self._running.values():
            assert run.block is not None
            assert run.block.depth + run.private_blocks >= self._blocks(run.computed)
            assert run.computed <= run.length
        assert not any(run.block or run.private_blocks or run.computed for run in self._waiting.values())
        assert len(self._running) <= self._max_running

    def _grow(self) -> list[SimRun]:
        """The decoding runs, each with a block for its next token; retracts until those are to be had."""
        while True:
            decodes = [run for run in self._running.values() if is_decoding(run)]
            growing = [run for run in decodes if self._lacks_block(run)]
            if len(growing) <= self.cache.available_blocks:
                break
            self._retract()
        self.cache.take(len(growing))
        for run in growing:
            run.private_blocks += 1
        if decodes:
            self._ratio = max(self._ratio - RATIO_DECAY, LEAST_RATIO)
        return decodes

    def _lacks_block(self, run: SimRun) -> bool:
        assert run.block is not None
        return run.length > (run.block.depth + run.private_blocks) * self._block_tokens

    def _retract(self) -> None:
        """The youngest run goes back to the queue; what it shared stays in the cache, the rest is lost."""
        run_id, run = self._running.popitem()
        self.retractions += 1
        self._release(run)
        run.computed = 0
        self._waiting[run_id] = run
        made = sum(run.output_tokens for run in self._running.values())
        asked = sum(run.max_tokens for run in self._running.values())
        self._ratio = min(1.0, (made + RETRACT_STEPS * len(self._running)) / (asked + 1))

    def _fill(self, runs: Collection[SimRun], budget: int, prefills: list[tuple[SimRun, int]]) -> int:
        """Give each run as much of the budget as it can use; what is left of it."""
        for run in runs:
            tokens = min(run.length - run.computed, budget)
            if tokens > 0:
                prefills.append((run, tokens))
                budget -= tokens
        return budget

    def _admit_and_fill(self, budget: int, prefills: list[tuple[SimRun, int]]) -> None:
        expected = self._expected_tokens(self._running.values())
        for run in self._in_order():
            if budget <= 0 or len(self._running) >= self._max_running or not self._admit(run, expected):
                return
            expected += min(run.max_tokens - run.output_tokens, MOST_EXPECTED_TOKENS)
            budget = self._fill([run], budget, prefills)

    def _in_order(self) -> list[SimRun]:
        runs = sorted(self._waiting.values(), key=lambda run: run.arrival)
        if self._queue is None:
            return runs
        waiting = [Waiting(run.length, self._match(run).depth * self._block_tokens, run.arrival) for run in runs]
        return [runs[i] for i in self._queue.order(waiting)]

    def _match(self, run: SimRun) -> CacheBlock:
        most = cacheable_blocks(run.length, self._block_tokens)
        run.cover(most)
        return self.cache.match(run.hashes, most)

    def _expected_tokens(self, runs: Collection[SimRun]) -> float:
        """Output tokens that these runs are expected still to make."""
        return sum(
            min(run.max_tokens - run.output_tokens, MOST_EXPECTED_TOKENS) * (1.0 if run.fixed_length else self._ratio)
            for run in runs
        )

    def _admit(self, run: SimRun, expected_tokens: float) -> bool:
        """Pin what is cached of the run and take blocks for the rest of its prompt, if there is room for both and
        for the output expected of all. A run alone is always admitted: `add` has seen that it fits."""
        block = self._match(run)
        needed = self._blocks(run.length) - block.depth
        left = self.cache.available_blocks - self.cache.unpinned_on_path(block) - needed
        wanted = min(run.max_tokens - run.output_tokens, MOST_EXPECTED_TOKENS) + expected_tokens + self._block_tokens
        if left < 0 or (self._running and left * self._block_tokens < wanted):
            return False
        self.cache.pin(block)
        self.cache.take(needed)
        run.block, run.private_blocks = block, needed
        run.computed = block.depth * self._block_tokens
        if not run.output_tokens:
            run.cached_tokens = run.computed
        del self._waiting[run.run_id]
        self._running[run.run_id] = run
        return True

    def _share(self, run: SimRun) -> None:
        """Put the run's computed full blocks into the tree."""
        assert run.block is not None
        full = run.computed // self._block_tokens
        if full <= run.block.depth:
            return
        run.cover(full)
        run.private_blocks -= full - run.block.depth
        run.block = self.cache.extend(run.block, run.hashes[run.block.depth : full])

    def _release(self, run: SimRun) -> None:
        assert run.block is not None
        self.cache.unpin(run.block)
        self.cache.give(run.private_blocks)
        run.block, run.private_blocks = None, 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)
