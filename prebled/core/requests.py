"""The life of a request in the global scheduler: its states, the arrows between them, and what is booked for it.

A request whose worker was lost ends here with `Continue`, and begins anew when the shell brings it back.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from prebled.core.types import RequestId

if TYPE_CHECKING:
    from prebled.core.load import Work
    from prebled.core.prefix_nodes import Visit
    from prebled.core.workers import Worker


class RequestState(enum.Enum):
    """Where a request stands."""

    __hash__ = object.__hash__  # members are the only ones of their kind; Enum's own hash is far slower

    ARRIVED = "arrived"  # not placed yet, or its placement could not be sent
    PARKED = "parked"  # continued, and no worker can take it now
    PLACED = "placed"  # on a worker, no token yet
    RUNNING = "running"  # on a worker, tokens come
    ENDED = "ended"  # no longer kept


_S = RequestState
TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    _S.ARRIVED: frozenset({_S.PLACED, _S.PARKED, _S.ENDED}),
    _S.PARKED: frozenset({_S.PLACED, _S.ENDED}),
    _S.PLACED: frozenset({_S.RUNNING, _S.ARRIVED, _S.ENDED}),
    _S.RUNNING: frozenset({_S.ENDED}),
    _S.ENDED: frozenset(),
}


class Request:
    """One request. `hashes`: of all full blocks of its prompt, dropped once the prompt is computed. `worker`, `work`
    and `visit` are its booking, `kept_blocks` what the worker held of the prompt before. `avoided`: workers it
    could not be sent to. Times in seconds."""

    __slots__ = (
        "avoided",
        "hashes",
        "is_continued",
        "kept_blocks",
        "max_tokens",
        "parked_at",
        "prompt_tokens",
        "request_id",
        "state",
        "visit",
        "work",
        "worker",
    )

    def __init__(
        self, request_id: RequestId, hashes: bytes, prompt_tokens: int, max_tokens: int, *, is_continued: bool
    ) -> None:
        self.request_id = request_id
        self.hashes = hashes
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.is_continued = is_continued
        self.state = RequestState.ARRIVED
        self.parked_at = 0.0
        self.worker: Worker | None = None
        self.work: Work | None = None
        self.visit: Visit | None = None
        self.kept_blocks = 0
        self.avoided: tuple[Worker, ...] = ()

    def move(self, state: RequestState) -> None:
        """Change state. An arrow that is not in the table is a bug: AssertionError."""
        assert state in TRANSITIONS[self.state], f"request {self.request_id}: {self.state} -> {state}"
        self.state = state

    @property
    def is_waiting(self) -> bool:
        """Accepted, on a worker, without a token yet. A continued one does not count: it was accepted long ago."""
        return self.state is RequestState.PLACED and not self.is_continued
