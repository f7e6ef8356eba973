"""What a starting worker has its engine compute before anybody waits for it: first to warm it up, then to be measured.

Every run is shorter than a block, so nothing of it stays in the cache. That leaves long contexts unmeasured: what they
cost is learnt from the traffic. Many short prompts in one step stand in for a long one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prebled.core.types import RunId
from prebled.messages import Sampling, StepSample, Submit

SEQUENCES = (1, 2, 4, 16, 64)
"""Runs beside each other in a round, as far as the engine takes so many."""

OUTPUT_TOKENS = 6

LEAST_BLOCK_TOKENS = 16
"""Nothing to be measured fits into a smaller block."""

WARM_UP = Submit(RunId("warm-up"), np.arange(1, 5, dtype="<u4").tobytes(), Sampling(max_tokens=2, ignore_eos=True))


def measured_rounds(block_tokens: int, max_running: int) -> list[list[Submit]]:
    """Runs to be computed together, round after round, the smallest first: few and many, each with short and long
    prompts. Empty if a block is too small."""
    if block_tokens < LEAST_BLOCK_TOKENS:
        return []
    longest = block_tokens - OUTPUT_TOKENS - 1
    return [
        [_run(f"measured-{prompt_tokens}-{index}", prompt_tokens) for index in range(sequences)]
        for sequences in SEQUENCES
        if sequences <= max_running
        for prompt_tokens in (longest // 4, longest)
    ]


def is_measured(submits: Sequence[Submit], samples: Sequence[StepSample]) -> bool:
    """Whether these are all steps of that round: every token of its prompts, and of its outputs but the first."""
    prompt_tokens = sum(len(submit.tokens) // 4 for submit in submits)
    decoded = sum(submit.sampling.max_tokens - 1 for submit in submits)
    return (
        sum(sample.new_tokens for sample in samples) >= prompt_tokens
        and sum(sample.sequences for sample in samples) >= decoded
    )


def _run(name: str, prompt_tokens: int) -> Submit:
    tokens = np.arange(1, prompt_tokens + 1, dtype="<u4").tobytes()
    return Submit(RunId(name), tokens, Sampling(max_tokens=OUTPUT_TOKENS, ignore_eos=True))
