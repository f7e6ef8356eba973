"""What to do: the only output of `GlobalScheduler.handle`. Each decision is carried out once by the shell."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import msgspec

from prebled.core.types import RequestId, WorkerId

Mode: TypeAlias = Literal["exploit", "explore"]
"""exploit: placed on a worker for the prefix it holds; explore: placed by least cost (Preble, section 3.2)."""

Cause: TypeAlias = Literal["evicted", "not_computed", "never_stored", "more", "other"]
"""Why an engine's cached tokens were not what was predicted; `core.prediction` says what each means."""

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


class Ranking(Protocol):
    """What the candidates of a placement can be written out from."""

    def candidates(self) -> tuple[Candidate, ...]:
        """See `Placement`."""


class Placed:
    """A `Placement` as it is decided: the same, but its candidates are written out only when somebody asks for them,
    since deciding takes microseconds, writing eight candidates out several of them, and few are ever looked at. Equal
    to any other with the same content."""

    __slots__ = ("_candidates", "adjusted", "matched_tokens", "missed_tokens", "mode", "policy", "worker_id")

    def __init__(
        self,
        worker_id: WorkerId,
        mode: Mode,
        policy: str,
        matched_tokens: int,
        missed_tokens: int,
        candidates: tuple[Candidate, ...] | Ranking = (),
        adjusted: tuple[str, ...] = (),
    ) -> None:
        self.worker_id = worker_id
        self.mode: Mode = mode
        self.policy = policy
        self.matched_tokens = matched_tokens
        self.missed_tokens = missed_tokens
        self._candidates = candidates
        self.adjusted = adjusted

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """See `Placement`."""
        if not isinstance(self._candidates, tuple):
            self._candidates = self._candidates.candidates()
        return self._candidates

    def written_out(self) -> Placement:
        """All of it as a value, to be sent or stored."""
        return Placement(
            self.worker_id,
            self.mode,
            self.policy,
            self.matched_tokens,
            self.missed_tokens,
            self.candidates,
            self.adjusted,
        )

    def __eq__(self, other: object) -> bool:
        return self.written_out() == other.written_out() if isinstance(other, Placed) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.written_out()).replace("Placement", "Placed", 1)


class Decision(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base of all decisions. Like all values here they hold only values, so no cycle can form: the garbage collector
    need not look at them."""


class Place(Decision, frozen=True):
    """Send the request to this worker. The booking is made; undo it with `SendFailed`."""

    request_id: RequestId
    placement: Placed


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


class WantSnapshot(Decision, frozen=True):
    """Something that this worker's cache did was missed: ask it for a snapshot."""

    worker_id: WorkerId


class Explanation(msgspec.Struct, frozen=True):
    """What `prebled explain` shows of a request: its newest decision, either `placement` or `reject`. `placements`: how
    often it was placed so far (again after a lost worker, or one that could not be reached). `cached_tokens`: what the
    engine of this placement took from its cache, to hold against `matched_tokens`; None until its first token, or for
    good if there was none. `mispredicted_tokens`: how many more were matched (negative: fewer), and `mispredicted` why,
    once the request has ended; None: they were as many, or it has not."""

    request_id: RequestId
    placement: Placement | None
    reject: Reject | None
    placements: int
    cached_tokens: int | None = None
    mispredicted_tokens: int = 0
    mispredicted: Cause | None = None


AnyDecision: TypeAlias = Place | Reject | AbortRun | Continue | WantSnapshot
