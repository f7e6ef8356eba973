"""Runs for the simulated engine, a model of it that is watched, and what it must answer, worked out without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash

from prebled.core.cost import profile
from prebled.core.types import RunId
from prebled.messages import KvChange, KvCleared, KvRemoved, Sampling, StepSample, Submit
from prebled.settings import SimSettings
from prebled.worker.engine import RunDone
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


class Watched:
    """A model whose steps are checked and kept."""

    def __init__(self, model: SimModel) -> None:
        self.model = model
        self.tokens: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}
        self.ends: dict[str, RunDone] = {}
        self.changes: list[KvChange] = []
        self.samples: list[StepSample] = []

    def submit(self, *submits: Submit) -> None:
        self.tokens.update({one.run_id: [] for one in submits})
        self.model.submit(submits)

    def step(self) -> float:
        before = self.model.load()
        step, duration_s = self.model.step()
        assert step.samples or not before.queued + before.running, "idle while somebody waits"
        self.model.check_invariants()
        load = self.model.load()
        assert 0 <= load.kv_used_tokens <= self.model.capacity.kv_tokens
        assert not step.failed
        self.changes += step.kv
        self.samples += step.samples
        for chunk in step.chunks:
            assert chunk.run_id not in self.ends, "tokens after the end"
            assert (chunk.cached_tokens >= 0) == (chunk.run_id not in self.cached)
            self.cached.setdefault(chunk.run_id, chunk.cached_tokens)
            self.tokens[chunk.run_id] += chunk.tokens
        for end in step.done:
            assert end.run_id not in self.ends, "ended twice"
            assert end.output_tokens == len(self.tokens[end.run_id])
            self.ends[end.run_id] = end
        return duration_s

    def finish(self, most_steps: int = 5000) -> float:
        seconds = 0.0
        for _ in range(most_steps):
            if self.model.is_idle:
                return seconds
            seconds += self.step()
        raise AssertionError(f"not through after {most_steps} steps: {self.model.load()}")


def watched(**options: object) -> Watched:
    return Watched(sim_model(**options))  # type: ignore[arg-type]


def held_by(changes: Iterable[KvChange]) -> set[bytes]:
    """The blocks that are there after these changes, as somebody would know who only hears of them."""
    parents: dict[bytes, bytes] = {}
    for change in changes:
        assert not isinstance(change, KvCleared)
        hashes = [change.hashes[at : at + 8] for at in range(0, len(change.hashes), 8)]
        if isinstance(change, KvRemoved):
            for first in hashes:
                gone = {first}
                assert first in parents, "removed what was not there"
                for block, parent in list(parents.items()):  # in order of insertion: parents come first
                    if block in gone or parent in gone:
                        gone.add(block)
                        del parents[block]
        else:
            parent = change.parent
            for block in hashes:
                assert parent in parents or not parent
                assert block not in parents, "stored twice"
                parents[block] = parent
                parent = block
    return set(parents)
