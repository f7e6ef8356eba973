"""Lets no block be computed twice at once in a simulated engine, as `sglang_gate` does in SGLang.

What a step computes is in the cache at its end. A run that could take its next block from there then, because another
run computes it in this step, is passed over: in the next step it finds that block, with all that the two have in common
behind it. Hashes are chained, so runs that wait for the same block agree in all before it, and one look into a set
tells.

A run is passed over only for one that computes in the same step: the engine is not left idle by it, and a run that is
first in the queue only waits for the last chunk of a prompt that it shares. Steps do not overlap here as they may in
SGLang, so nothing is waited for longer than a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import final

from prebled.core.blocks import HASH_BYTES
from prebled.worker.sglang_gate import MOST_PASSED_OVER
from prebled.worker.sim_run import SimRun


@final
class BlockGate:
    """Of one step."""

    def __init__(self, block_tokens: int, begun: Iterable[SimRun]) -> None:
        """`begun`: whose prompts are computed in this step, before anybody is admitted."""
        self._block_tokens = block_tokens
        self._computed: set[bytes] = set()
        for run in begun:
            self.admit(run)

    def let_through(self, waiting: Iterable[SimRun], awaited: Callable[[SimRun], bytes]) -> Iterator[SimRun]:
        """Those of the waiting runs, in order, that are not passed over for one that was admitted until then; nobody
        after `MOST_PASSED_OVER`. `awaited`: the first block that the cache lacks of those that a run could take from
        there; empty if it lacks none."""
        passed_over = 0
        for run in waiting:
            if awaited(run) not in self._computed:
                yield run
                continue
            passed_over += 1
            if passed_over == MOST_PASSED_OVER:
                return

    def admit(self, run: SimRun) -> None:
        """The run computes the block behind its node, if it fills it."""
        assert run.node is not None
        depth = run.node.depth
        if (depth + 1) * self._block_tokens <= run.length:
            run.cover(depth + 1)
            self._computed.add(run.path[depth * HASH_BYTES : (depth + 1) * HASH_BYTES])
