"""Checks a submitted run before an engine sees it: one bad token id or an empty prompt would kill SGLang's scheduler.

The daemon checks the same ranges earlier and with the client's own words; this is the last gate, against the capacity
of this very engine.
"""

from __future__ import annotations

import math

import numpy as np

from prebled.errors import InvalidValue, PrebledError, PromptTooLong
from prebled.messages import Capacity, Sampling, Submit

_TOKEN_BYTES = 4
_SEEDS = range(-(2**63), 2**63)
_MAX_STOP_TOKEN_IDS = 1024


def check_submit(submit: Submit, capacity: Capacity) -> PrebledError | None:
    """What is wrong with the run, naming the value; None if the engine can take it."""
    return _check_prompt(submit.tokens, capacity) or _check_sampling(submit, capacity)


def _check_prompt(tokens: bytes, capacity: Capacity) -> PrebledError | None:
    if not tokens:
        return InvalidValue("the prompt is empty", param="prompt")
    if len(tokens) % _TOKEN_BYTES:
        return InvalidValue(f"the prompt's {len(tokens)} bytes are not a whole number of token ids", param="prompt")
    prompt_tokens = len(tokens) // _TOKEN_BYTES
    if prompt_tokens > capacity.max_prompt_tokens:
        return PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, the engine takes at most {capacity.max_prompt_tokens}",
            param="prompt",
        )
    largest = int(np.frombuffer(tokens, dtype="<u4").max())
    if largest >= capacity.vocab_size:
        return InvalidValue(
            f"token id {largest} is not below the vocabulary size {capacity.vocab_size}", param="prompt"
        )
    return None


def _check_sampling(submit: Submit, capacity: Capacity) -> PrebledError | None:
    sampling = submit.sampling
    if sampling.max_tokens < 1:
        return InvalidValue(f"max_tokens must be at least 1, not {sampling.max_tokens}", param="max_tokens")
    total_tokens = len(submit.tokens) // _TOKEN_BYTES + sampling.max_tokens
    if total_tokens > capacity.max_total_tokens:
        return PromptTooLong(
            f"prompt and max_tokens make {total_tokens} tokens, the engine holds at most {capacity.max_total_tokens}",
            param="max_tokens",
        )
    return _check_ranges(sampling, capacity)


def _check_ranges(sampling: Sampling, capacity: Capacity) -> PrebledError | None:
    """Comparisons are written so that NaN fails them."""
    if not 0 <= sampling.temperature < math.inf:
        return InvalidValue(
            f"temperature must be finite and at least 0, not {sampling.temperature}", param="temperature"
        )
    if not 0 < sampling.top_p <= 1:
        return InvalidValue(f"top_p must be above 0 and at most 1, not {sampling.top_p}", param="top_p")
    if sampling.top_k != -1 and sampling.top_k < 1:
        return InvalidValue(f"top_k must be -1 or at least 1, not {sampling.top_k}", param="top_k")
    if not 0 <= sampling.min_p <= 1:
        return InvalidValue(f"min_p must be between 0 and 1, not {sampling.min_p}", param="min_p")
    if sampling.seed is not None and sampling.seed not in _SEEDS:
        return InvalidValue(f"seed must fit into 64 bits with a sign, not {sampling.seed}", param="seed")
    if len(sampling.stop_token_ids) > _MAX_STOP_TOKEN_IDS:
        return InvalidValue(
            f"at most {_MAX_STOP_TOKEN_IDS} stop token ids are taken, not {len(sampling.stop_token_ids)}",
            param="stop_token_ids",
        )
    for token_id in sampling.stop_token_ids:
        if not 0 <= token_id < capacity.vocab_size:
            return InvalidValue(
                f"stop token id {token_id} is not between 0 and {capacity.vocab_size - 1}", param="stop_token_ids"
            )
    return None
