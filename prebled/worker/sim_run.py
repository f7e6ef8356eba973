"""A run as the simulated batch sees it: counts of tokens, hashes of blocks, and its place in the KV cache."""

from __future__ import annotations

from typing import NamedTuple

from prebled.core.types import RunId
from prebled.worker.sim_cache import CacheBlock


class SimRun:
    """Token counts, unless it says otherwise.

    `hashes` covers at least the full blocks of the prompt; `cover` extends it over the output. `length`: prompt and
    output; `computed`: how many of those have KV; `private_blocks`: KV blocks of its own, past `block` in the tree.
    """

    __slots__ = (
        "arrival",
        "block",
        "cached_tokens",
        "computed",
        "fixed_length",
        "hashes",
        "max_tokens",
        "output_tokens",
        "private_blocks",
        "prompt_tokens",
        "run_id",
    )

    def __init__(
        self, run_id: RunId, prompt_tokens: int, max_tokens: int, hashes: list[int], *, fixed_length: bool
    ) -> None:
        """`fixed_length`: the run will make exactly `max_tokens`, no end-of-sequence token comes sooner."""
        self.run_id = run_id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.hashes = hashes
        self.fixed_length = fixed_length
        self.arrival = -1
        self.output_tokens = 0
        self.cached_tokens = 0
        self.computed = 0
        self.private_blocks = 0
        self.block: CacheBlock | None = None

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def cover(self, blocks: int) -> None:
        """Make `hashes` at least `blocks` long; the run has that many full blocks of tokens."""
        raise IndexError(f"run {self.run_id}: {blocks} blocks wanted, the hashes of {len(self.hashes)} are known")


class StepPlan(NamedTuple):
    """What one step computes: prompt tokens per run (all still to do, or as many as the budget left), and one token
    for each decoding run."""

    prefills: list[tuple[SimRun, int]]
    decodes: list[SimRun]


def is_decoding(run: SimRun) -> bool:
    """Whether all but the newest output token is computed. A run back from retraction is prefilled like any other."""
    return run.output_tokens > 0 and run.computed == run.length - 1
