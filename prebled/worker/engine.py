"""The seam between a worker and what computes tokens: a narrow protocol with one real and one simulated engine.

Contract, held by the conformance suite (`tests/engines/`):
- every submitted run ends with exactly one `RunDone` or `RunFailed`, aborted ones included (reason `abort`);
- all tokens of a run are in chunks of the same or earlier steps than its end;
- the same greedy request gives the same tokens alone, in a batch, after a cached prefix, after an abort beside it;
- an abort frees the run's KV; `capacity` and `cached_tokens` are what the engine itself found;
- what a run left in the cache is told in the same step as its end or before it, and what had to go to make room for it
  in the same step as its first tokens or before; the changes told, applied to what was held, give what is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from prebled.core.types import RunId
from prebled.messages import Capacity, Chunk, FinishReason, KvChange, KvStored, StepSample, Submit


class RunDone(msgspec.Struct, frozen=True):
    """A run ended. Token counts; `output_tokens` includes the end-of-sequence token if one was generated."""

    run_id: RunId
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class RunFailed(msgspec.Struct, frozen=True):
    """A run was refused or lost. `code` is one of `prebled.errors`."""

    run_id: RunId
    code: str
    message: str
    retryable: bool = False


class EngineStep(msgspec.Struct, frozen=True):
    """What one step of the engine brought forth; all of it may be empty. `kv`: how the cache has changed, in order,
    with the block hashes of `core.blocks`; `samples`: the steps measured."""

    chunks: tuple[Chunk, ...] = ()
    done: tuple[RunDone, ...] = ()
    failed: tuple[RunFailed, ...] = ()
    kv: tuple[KvChange, ...] = ()
    samples: tuple[StepSample, ...] = ()


class EngineLoad(msgspec.Struct, frozen=True):
    """Requests waiting and running, and KV tokens held by running requests or cached (evictable ones do not count)."""

    queued: int
    running: int
    kv_used_tokens: int


class Engine(Protocol):
    """One model on one device or tensor-parallel group. All methods are called from one event loop."""

    async def start(self, report: Callable[[str], None]) -> Capacity:
        """Load the model. `report` gets short progress lines for people. Raises EngineFailed."""

    def submit_nowait(self, submits: Sequence[Submit]) -> None:
        """Start runs that `validate.check_submit` has passed. Outcomes come from `wait_step`."""

    def abort_nowait(self, run_ids: Sequence[RunId]) -> None:
        """End runs; each still unended one ends with reason `abort`. Unknown ids are ignored."""

    async def wait_step(self) -> EngineStep:
        """The next step's outcome. Raises EngineFailed within a second of the engine's death."""

    def load(self) -> EngineLoad:
        """The newest known load; never blocks."""

    def set_namespace(self, model: str) -> None:
        """Block hashes start from this model's name from now on. What the cache holds is told anew by `held`."""

    def held(self) -> tuple[KvStored, ...]:
        """All that the cache holds after the steps given out so far, parents before children."""

    async def stop(self) -> None:
        """Stop the engine and free the device. Safe to call twice, and after a failure."""
