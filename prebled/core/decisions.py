"""What to do: the only output of `GlobalScheduler.handle`. Each decision is carried out once by the shell."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from prebled.core.types import RequestId, WorkerId

Mode: TypeAlias = Literal["exploit", "explore"]
"""exploit: placed on a worker for the prefix it holds; explore: placed by least cost (Preble, section 3.2)."""

RejectCode: TypeAlias = Literal["no_worker_ready", "saturated", "draining", "context_length_exceeded"]
"""Codes of `prebled.errors`."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One worker as the policy saw it. Costs in seconds of GPU time; `total_s` is what was compared."""

    worker_id: WorkerId
    cached_tokens: int
    load_s: float
    eviction_s: float
    prefill_s: float
    total_s: float


class Placement(msgspec.Struct, frozen=True, gc=False):
    """The outcome of choosing, with its reason. `matched_tokens` are those the chosen worker is believed to hold (or
    to be computing), `missed_tokens` the rest of the prompt. `candidates`: at most eight, cheapest first, the chosen
    one always among them. `adjusted`: what changed the plain choice (rebalancing, replication, steering), in words."""

    worker_id: WorkerId
    mode: Mode
    policy: str
    matched_tokens: int
    missed_tokens: int
    candidates: tuple[Candidate, ...] = ()
    adjusted: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base of all decisions. Like all values here they hold only values, so no cycle can form: the garbage collector
    need not look at them."""


class Place(Decision, frozen=True):
    """Send the request to this worker. The booking is made; undo it with `SendFailed`."""

    request_id: RequestId
    placement: Placement


class Reject(Decision, frozen=True):
    """Tell the client no. `message` names the numbers; `retry_after_s` None: it will never fit."""

    request_id: RequestId
    code: RejectCode
    message: str
    retry_after_s: float | None = None


class AbortRun(Decision, frozen=True):
    """The request is no longer wanted on this worker: abort it there."""

    request_id: RequestId
    worker_id: WorkerId


class Continue(Decision, frozen=True):
    """The request's worker is lost: bring it back as `RequestArrived(continued=True)` with prompt plus sent tokens,
    or finish it if it was complete."""

    request_id: RequestId


class Explanation(msgspec.Struct, frozen=True):
    """What `prebled explain` shows of a request: its newest decision, either `placement` or `reject`. `placements`: how
    often it was placed so far (again after a lost worker, or one that could not be reached). `cached_tokens`: what the
    engine of this placement took from its cache, to hold against `matched_tokens`; None until its first token, or for
    good if there was none."""

    request_id: RequestId
    placement: Placement | None
    reject: Reject | None
    placements: int
    cached_tokens: int | None = None


AnyDecision: TypeAlias = Place | Reject | AbortRun | Continue
