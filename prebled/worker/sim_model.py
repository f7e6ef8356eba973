"""The simulated engine without clock or loop: runs in, steps out, each with the seconds that it would take.

Tokens are a function of the vocabulary and of all tokens so far, so the same prompt gives the same text alone, in a
batch, after a cached prefix, and continued elsewhere from prompt plus output. Temperature, seed and the other sampling
ranges change nothing. One token in `EOS_ONE_IN` ends a sequence. Blocks and batching are real (`sim_cache`,
`sim_batch`), durations are those of the profile (`sim_cost`). Whoever drives it owns time: what a step brought, and
the blocks it computed, count from its end on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import xxhash

from prebled.core.blocks import HASH_BYTES, hash_path, namespace_seed
from prebled.core.cost import CostModel
from prebled.core.local_scheduler import LocalScheduler
from prebled.core.types import RunId
from prebled.errors import SettingsError
from prebled.messages import Capacity, Chunk, FinishReason, KvStored, Submit
from prebled.settings import SimSettings
from prebled.worker.engine import EngineLoad, EngineStep, RunDone
from prebled.worker.sim_batch import SimBatch
from prebled.worker.sim_cost import step_sample, step_seconds
from prebled.worker.sim_run import SimRun

EOS_ONE_IN = 256


@final
class Vocabulary:
    """Turns the hash of all tokens so far into the next one."""

    def __init__(self, size: int, eos_token_ids: Sequence[int]) -> None:
        """Raises SettingsError for an empty vocabulary. Ids beyond it cannot come and are ignored."""
        self.eos_token_ids = tuple(sorted({token for token in eos_token_ids if 0 <= token < size}))
        self._ordinary = size - len(self.eos_token_ids)
        if self._ordinary < 1:
            raise SettingsError(f"a vocabulary of {size} tokens has none beside the ends of sequence")

    def token(self, digest: int) -> int:
        chance, choice = digest % EOS_ONE_IN, digest // EOS_ONE_IN
        if chance == 0 and self.eos_token_ids:
            return self.eos_token_ids[choice % len(self.eos_token_ids)]
        token = choice % self._ordinary
        for eos in self.eos_token_ids:  # sorted: steps over each of them
            token += token >= eos
        return token


@final
class TokenRun(SimRun):
    """A run with its tokens: their hashes block by block, and the running hash of all of them."""

    __slots__ = ("_block_tokens", "_hash", "_seed", "_tokens", "stops")

    def __init__(self, submit: Submit, namespace: int, block_tokens: int, eos_token_ids: Sequence[int]) -> None:
        sampling = submit.sampling
        super().__init__(
            submit.run_id,
            len(submit.tokens) // 4,
            sampling.max_tokens,
            hash_path(submit.tokens, block_tokens, namespace),
            fixed_length=sampling.ignore_eos,
        )
        # As in SGLang: who ignores the end of sequence ignores stop tokens too.
        self.stops = frozenset() if sampling.ignore_eos else frozenset({*sampling.stop_token_ids, *eos_token_ids})
        self._block_tokens = block_tokens
        self._seed = namespace
        self._tokens = bytearray(submit.tokens)
        self._hash = xxhash.xxh3_64(submit.tokens)

    def add_token(self, vocabulary: Vocabulary) -> int:
        """Make the next token; the batch counts it."""
        token = vocabulary.token(self._hash.intdigest())
        raw = token.to_bytes(4, "little")
        self._tokens += raw
        self._hash.update(raw)
        return token

    def cover(self, blocks: int) -> None:
        known = len(self.path) // HASH_BYTES
        if blocks > known:
            width = 4 * self._block_tokens
            new = bytes(self._tokens[known * width : blocks * width])
            seed = int.from_bytes(self.path[-HASH_BYTES:], "little") if known else self._seed
            self.path += hash_path(new, self._block_tokens, seed)


@final
class SimModel:
    """One simulated engine. All methods return at once."""

    def __init__(
        self,
        settings: SimSettings,
        block_tokens: int,
        *,
        model: str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        cost: CostModel,
        queue_policy: str = "groups",
    ) -> None:
        """`queue_policy`: `groups` (Preble's, see `LocalScheduler`) or `fcfs`. Raises SettingsError."""
        if queue_policy not in ("groups", "fcfs"):
            raise SettingsError(f"queue_policy {queue_policy!r}: the simulated engine knows groups and fcfs")
        kv_blocks = settings.kv_tokens // block_tokens
        if kv_blocks < 1 or settings.context_tokens < 2:
            raise SettingsError(
                f"sim.kv_tokens {settings.kv_tokens} and sim.context_tokens {settings.context_tokens} hold no request"
                f" in blocks of {block_tokens}"
            )
        self._model = model
        self._block_tokens = block_tokens
        self._vocabulary = Vocabulary(vocab_size, eos_token_ids)
        self._cost = cost
        self._speed = settings.speed
        self._batch = SimBatch(
            kv_blocks=kv_blocks,
            block_tokens=block_tokens,
            chunk_tokens=settings.chunk_tokens,
            max_running=settings.max_running,
            queue=LocalScheduler() if queue_policy == "groups" else None,
            mixed_chunks=settings.mixed_chunks,
            tells_changes=True,
        )
        self._aborted: list[RunDone] = []
        most = min(settings.context_tokens, kv_blocks * block_tokens)
        self.capacity = Capacity(
            model=model,
            engine="sim",
            device="sim",
            block_tokens=block_tokens,
            kv_tokens=kv_blocks * block_tokens,
            max_prompt_tokens=most - 1,
            max_total_tokens=most,
            vocab_size=vocab_size,
            max_running=settings.max_running,
        )

    @property
    def is_idle(self) -> bool:
        """Whether a step would bring nothing."""
        return not self._batch and not self._aborted

    @property
    def retractions(self) -> int:
        """How often a run lost its KV to others so far."""
        return self._batch.retractions

    def set_namespace(self, model: str) -> None:
        """Hashes start from this name from now on. What was cached under another matches nothing any more: it goes."""
        if model != self._model:
            self._model = model
            self._batch.cache.evict_all()

    def held(self) -> tuple[KvStored, ...]:
        """All that the cache holds, parents before children."""
        return tuple(self._batch.cache.held())

    def submit(self, submits: Sequence[Submit]) -> None:
        """Queue runs that `check_submit` has passed."""
        for submit in submits:
            namespace = namespace_seed(self._model, "", submit.cache_salt)
            self._batch.add(TokenRun(submit, namespace, self._block_tokens, self._vocabulary.eos_token_ids))

    def abort(self, run_ids: Sequence[RunId]) -> None:
        """Free these runs' KV now; the next step says that they ended. Unknown ids are ignored."""
        for run_id in run_ids:
            run = self._batch.get(run_id)
            if run is not None:
                self._aborted.append(self._end(run, "abort"))

    def step(self) -> tuple[EngineStep, float]:
        """Compute one step: what comes of it, and the seconds it takes. Runs submitted meanwhile wait for the next.

        A sample has the seconds that pass for whoever waits for the step, at the speed of the settings."""
        done, self._aborted = self._aborted, []
        plan = self._batch.plan()
        duration_s = step_seconds(self._cost, plan)
        has_work = bool(plan.prefills or plan.sequences)
        samples = (step_sample(plan, duration_s / self._speed),) if has_work else ()
        decoding = list(self._batch.decodes.runs.values()) if plan.sequences else []
        end = self._batch.commit(plan)
        through = set(end.through)
        first = {run for run in end.begun if run.output_tokens == 1}
        chunks = []
        for run in (*decoding, *end.begun):
            assert isinstance(run, TokenRun)
            token = run.add_token(self._vocabulary)
            chunks.append(Chunk(run.run_id, (token,), run.cached_tokens if run in first else -1))
            if token in run.stops:
                done.append(self._end(run, "stop"))
            elif run in through:
                done.append(self._end(run, "length"))
        changes = self._batch.cache.take_changes()
        return EngineStep(tuple(chunks), tuple(done), kv=changes, samples=samples), duration_s

    def load(self) -> EngineLoad:
        return self._batch.load()

    def check_invariants(self) -> None:
        """AssertionError if blocks were lost or taken twice. For tests."""
        self._batch.check_invariants()

    def _end(self, run: SimRun, reason: FinishReason) -> RunDone:
        self._batch.end(run)
        return RunDone(run.run_id, reason, run.prompt_tokens, run.cached_tokens, run.output_tokens)
