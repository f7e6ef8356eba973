"""Runs for the simulated engine, and what it must answer, worked out without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from prebled.core.cost import profile
from prebled.core.types import RunId
from prebled.messages import Sampling, Submit
from prebled.settings import SimSettings
from prebled.worker.sim_model import SimModel, Vocabulary

VOCAB_SIZE = 1000
EOS_TOKEN_IDS = (7, 900)
COST = profile("mistral-7b-a6000")


def token_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, dtype="<u4").tobytes()


def prompt(seed: int, tokens: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, tokens)]


def submit(run_id: str, tokens: Sequence[int], max_tokens: int, *, cache_salt: str = "", **sampling: Any) -> Submit:
    """Deaf to ends of sequence unless told otherwise."""
    chosen = Sampling(max_tokens, **{"ignore_eos": True, **sampling})
    return Submit(RunId(run_id), token_bytes(tokens), chosen, cache_salt)


def expected_tokens(tokens: Sequence[int], max_tokens: int, stops: Sequence[int] = ()) -> list[int]:
    """The answer to a prompt by the function's definition: each token from the hash of all before it."""
    vocabulary = Vocabulary(VOCAB_SIZE, EOS_TOKEN_IDS)
    made: list[int] = []
    while len(made) < max_tokens and not (made and made[-1] in stops):
        made.append(vocabulary.token(xxhash.xxh3_64_intdigest(token_bytes([*tokens, *made]))))
    return made


def sim_model(block_tokens: int = 16, queue_policy: str = "groups", **settings: Any) -> SimModel:
    return SimModel(
        SimSettings(**settings),
        block_tokens,
        model="m",
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS_TOKEN_IDS,
        cost=COST,
        queue_policy=queue_policy,
    )
