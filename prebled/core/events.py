"""What happened: the only input of `GlobalScheduler.handle`. Values, tagged, so that a trace of them can be replayed.

An event states a fact that the shell saw; it never asks for an outcome. Times are not in the events: `now` is passed
beside them (seconds, any monotonic origin).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity, KvChange, KvStored, StepSample


class Event(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base of all events. They hold only values, so no cycle can form: the garbage collector need not look at them."""


class RequestArrived(Event, frozen=True):
    """A request wants a worker. `tokens`: prompt ids as uint32 LE bytes. (`model`, `lora`, `cache_salt`) is the
    namespace: only equal namespaces share prefixes. `max_tokens`: most output tokens.

    `continued`: the request ran before and its worker was lost; `tokens` is then the prompt plus what was sent, and
    the bound on waiting requests does not apply (it was accepted long ago).

    `path`, for whoever knows hashes but no tokens (a trace): the hashes of the prompt's full blocks, as
    `core.blocks.hash_path` gives them, and `prompt_tokens`; `tokens` is then empty."""

    request_id: RequestId
    tokens: bytes
    max_tokens: int
    model: str = ""
    lora: str = ""
    cache_salt: str = ""
    continued: bool = False
    path: bytes = b""
    prompt_tokens: int = 0


class SendFailed(Event, frozen=True):
    """A placement could not be sent (the worker left in between): its booking is undone."""

    request_id: RequestId
    worker_id: WorkerId


class FirstToken(Event, frozen=True):
    """The first token chunk came: the prompt is computed. `cached_tokens`: what the engine took from its cache."""

    request_id: RequestId
    cached_tokens: int


class TokensMade(Event, frozen=True):
    """More output tokens of a running request; `output_tokens` is the total of its current stay."""

    request_id: RequestId
    output_tokens: int


class RequestFinished(Event, frozen=True):
    """The request ended on its worker, well or badly (`failed`: the worker refused or lost it, for good)."""

    request_id: RequestId
    output_tokens: int
    failed: bool = False


class RequestCancelled(Event, frozen=True):
    """The client is gone, or the shell ended the request for another reason (stop string, slow reader)."""

    request_id: RequestId


class RequestLost(Event, frozen=True):
    """The worker lives, but this request's tokens on it cannot be had any more (a gap beyond the ring)."""

    request_id: RequestId


class WorkerReady(Event, frozen=True):
    """A worker serves. A new epoch of a known worker forgets all of the old one."""

    worker_id: WorkerId
    epoch: Epoch
    capacity: Capacity


class WorkerLoad(Event, frozen=True):
    """A worker's beat. Requests waiting and running in its engine; KV tokens in use (running, not merely cached)."""

    worker_id: WorkerId
    queued: int
    running: int
    kv_used_tokens: int


class KvReported(Event, frozen=True):
    """A worker's cache has changed, in this order. What it says wins over what was expected of it."""

    worker_id: WorkerId
    changes: tuple[KvChange, ...]


class KvSnapshotTaken(Event, frozen=True):
    """All that a worker's cache holds, parents before children; it replaces what was believed. What is in flight there
    is still expected."""

    worker_id: WorkerId
    runs: tuple[KvStored, ...]


class StepsMeasured(Event, frozen=True):
    """Steps that a worker's engine took, in order; it took `left_out` more that it tells nothing of."""

    worker_id: WorkerId
    samples: tuple[StepSample, ...]
    left_out: int = 0


class WorkerDraining(Event, frozen=True):
    """A worker takes no new requests but finishes those it has."""

    worker_id: WorkerId


class WorkerLost(Event, frozen=True):
    """A worker is gone: process dead, beats missing, or it said Leaving. Its cache is forgotten and its requests are
    to continue elsewhere."""

    worker_id: WorkerId


class DrainStarted(Event, frozen=True):
    """The daemon accepts nothing new; what is accepted still gets served, continued requests included."""


class Tick(Event, frozen=True):
    """The time that `next_deadline()` named has come (or passed)."""


AnyEvent: TypeAlias = (
    RequestArrived
    | SendFailed
    | FirstToken
    | TokensMade
    | RequestFinished
    | RequestCancelled
    | RequestLost
    | WorkerReady
    | WorkerLoad
    | KvReported
    | KvSnapshotTaken
    | StepsMeasured
    | WorkerDraining
    | WorkerLost
    | DrainStarted
    | Tick
)
