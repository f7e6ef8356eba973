"""The runs that decode, counted together: a step gives each of them one token and touches none of them.

Steps are numbered. A run that joined with m tokens after step s has m + n - s after step n; so which run ends when,
and how many want a new KV block at which step, is known when it joins, and any number of steps is one addition. What
a run itself says (`SimRun.output_tokens`, `computed`, `private_blocks`) is brought up to date when it leaves.
"""

from __future__ import annotations

import heapq
from typing import final

from prebled.core.types import RunId
from prebled.worker.sim_run import SimRun


@final
class Decodes:
    """`step`: steps made so far. `context_tokens`: lengths of all runs together, their newest tokens included."""

    def __init__(self, block_tokens: int) -> None:
        self.step = 0
        self.context_tokens = 0
        self.runs: dict[RunId, SimRun] = {}
        self._block_tokens = block_tokens
        # How many runs take a new block at steps that leave this remainder: their newest token begins one.
        self._growing = [0] * block_tokens
        self._ends: list[tuple[int, int, SimRun]] = []  # a heap; entries of runs that left before are stale

    def __len__(self) -> int:
        return len(self.runs)

    def join(self, run: SimRun) -> None:
        """A run whose prompt is computed, with one token or more, but not all of them."""
        run.since = self.step
        self.runs[run.run_id] = run
        length = run.prompt_tokens + run.output_tokens
        self.context_tokens += length
        self._growing[(self.step - length + 1) % self._block_tokens] += 1
        heapq.heappush(self._ends, (self._ends_at(run), run.admitted, run))

    def leave(self, run: SimRun) -> None:
        """It ends, or loses its place. Not between a plan, which has taken the next step's blocks, and its commit."""
        del self.runs[run.run_id]
        made = run.output_tokens + self.step - run.since
        length = run.prompt_tokens + made
        self.context_tokens -= length
        self._growing[(self.step - length + 1) % self._block_tokens] -= 1
        assert run.node is not None
        run.since = -1
        run.output_tokens = made
        run.computed = length - 1
        run.private_blocks = -(-run.computed // self._block_tokens) - run.node.depth

    def output_tokens(self, run: SimRun) -> int:
        """What a run has made by now, whether it decodes or not."""
        return run.output_tokens + (self.step - run.since if run.since >= 0 else 0)

    def private_blocks(self, run: SimRun) -> int:
        """What a run has taken by now beyond its node, the next step's block not counted."""
        if run.since < 0:
            return run.private_blocks
        assert run.node is not None
        computed = run.prompt_tokens + self.output_tokens(run) - 1
        return -(-computed // self._block_tokens) - run.node.depth

    def growth(self, ahead: int = 0) -> int:
        """Blocks that the step after `ahead` more will want."""
        return self._growing[(self.step + ahead) % self._block_tokens]

    def growth_of(self, steps: int) -> int:
        """Blocks that the first `steps` steps after the next one will want together."""
        first, size = self.step + 1, self._block_tokens
        rounds, rest = divmod(steps, size)
        blocks = rounds * len(self.runs) if rounds else 0
        return blocks + sum(self._growing[at % size] for at in range(first, first + rest))

    def steps_within(self, free_blocks: int, most: int) -> int:
        """How many steps, the next one (whose blocks are taken) included, can be made with so many blocks; at most
        `most`."""
        size = self._block_tokens
        if free_blocks >= (most // size + 1) * len(self.runs):
            return most
        for steps in range(1, most):
            free_blocks -= self._growing[(self.step + steps) % size]
            if free_blocks < 0:
                return steps
        return most

    def steps_to_end(self) -> int:
        """After how many steps the first run will have all its tokens. There is a run."""
        ends = self._ends
        while not self._is_current(ends[0]):
            heapq.heappop(ends)
        return ends[0][0] - self.step

    def advance(self, steps: int) -> list[SimRun]:
        """So many steps are made, at most `steps_to_end`. The runs that have all their tokens; they have not left."""
        self.step += steps
        self.context_tokens += steps * len(self.runs)
        ends = self._ends
        through = []
        while ends and ends[0][0] <= self.step:
            entry = heapq.heappop(ends)
            if self._is_current(entry):
                through.append(entry[2])
        return through

    def check_invariants(self) -> None:
        """Recount everything; AssertionError if a sum is off. For tests."""
        growing = [0] * self._block_tokens
        context_tokens = 0
        for run in self.runs.values():
            assert run.since >= 0
            made = self.output_tokens(run)
            assert 0 < made < run.max_tokens
            context_tokens += run.prompt_tokens + made
            growing[(self.step - run.prompt_tokens - made + 1) % self._block_tokens] += 1
        assert (context_tokens, growing) == (self.context_tokens, self._growing)
        assert {id(run) for run in self.runs.values()} == {id(one[2]) for one in self._ends if self._is_current(one)}

    def _ends_at(self, run: SimRun) -> int:
        return run.since + run.max_tokens - run.output_tokens

    def _is_current(self, entry: tuple[int, int, SimRun]) -> bool:
        run = entry[2]
        return run.since >= 0 and entry[1] == run.admitted and entry[0] == self._ends_at(run)
