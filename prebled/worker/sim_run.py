"""A run as the simulated batch sees it: counts of tokens, hashes of blocks, and its place in the KV cache."""

from __future__ import annotations

from typing import NamedTuple

from prebled.core.types import RunId
from prebled.worker.sim_watches import CacheNode, Watch


class SimRun:
    """Token counts, unless it says otherwise.

    `path`: block hashes, 8 bytes each, of at least the full blocks of the prompt; `cover` extends it over the output.
    `computed`: how many tokens have KV; `private_blocks`: KV blocks of its own, past `node` in the tree. `watch`: while
    it waits, what of it is cached.

    While a run decodes, `since` is the decoding step (of its batch) after which it joined, and `output_tokens`,
    `computed` and `private_blocks` are as of then (see `sim_decodes`); otherwise `since` is -1.
    """

    __slots__ = (
        "admitted",
        "arrival",
        "cached_tokens",
        "computed",
        "fixed_length",
        "max_tokens",
        "node",
        "output_tokens",
        "path",
        "private_blocks",
        "prompt_tokens",
        "run_id",
        "since",
        "watch",
    )

    def __init__(self, run_id: RunId, prompt_tokens: int, max_tokens: int, path: bytes, *, fixed_length: bool) -> None:
        """`fixed_length`: the run will make exactly `max_tokens`, no end-of-sequence token comes sooner."""
        self.run_id = run_id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.path = path
        self.fixed_length = fixed_length
        self.arrival = -1
        self.admitted = -1
        self.output_tokens = 0
        self.cached_tokens = 0
        self.computed = 0
        self.private_blocks = 0
        self.since = -1
        self.node: CacheNode | None = None
        self.watch: Watch | None = None

    @property
    def length(self) -> int:
        """Prompt and output (not while it decodes)."""
        return self.prompt_tokens + self.output_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether all but the newest output token is computed. A run back from retraction is prefilled first."""
        return self.since >= 0

    def cover(self, blocks: int) -> None:
        """Make `path` at least `blocks` long; the run has that many full blocks of tokens."""
        raise IndexError(f"run {self.run_id}: {blocks} blocks wanted, {len(self.path) // 8} are known")


class StepPlan(NamedTuple):
    """What a step computes: prompt tokens of each run in `prefills` (all still to do, or as many as the budget left),
    and one token for each of `sequences` decoding runs, which have `context_tokens` between them, the newest included.

    Up to `steps` such steps may be made at once: apart from the context, which grows by a token for each sequence,
    they are all alike."""

    prefills: list[tuple[SimRun, int]]
    sequences: int
    context_tokens: int
    steps: int


class StepEnd(NamedTuple):
    """What came of it. `begun`: runs whose prompt is computed and that made a token with it. `through`: runs, decoding
    ones first, that have all their tokens; they are to be ended before the next plan."""

    begun: list[SimRun]
    through: list[SimRun]
