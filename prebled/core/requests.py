"""The life of a request in the global scheduler: its states, the arrows between them, and what is booked for it.

A request whose worker was lost ends here with `Continue`, and begins anew when the shell brings it back.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

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


class Request(msgspec.Struct, eq=False):
    """One request. `hashes`: of all full blocks of its prompt, dropped once the prompt is computed. `worker`, `work`
    and `visit` are its booking, `mispredicted_tokens` is as in `Explanation`. `avoided`: workers it could not be sent
    to. Times in seconds."""

    request_id: RequestId
    hashes: bytes
    prompt_tokens: int
    max_tokens: int
    is_continued: bool
    state: RequestState = RequestState.ARRIVED
    parked_at: float = 0.0
    worker: Worker | None = None
    work: Work | None = None
    visit: Visit | None = None
    mispredicted_tokens: int = 0
    avoided: tuple[Worker, ...] = ()

    def move(self, state: RequestState) -> None:
        """Change state. An arrow that is not in the table is a bug: AssertionError."""
        assert state in TRANSITIONS[self.state], f"request {self.request_id}: {self.state} -> {state}"
        self.state = state

    @property
    def is_waiting(self) -> bool:
        """Accepted, on a worker, without a token yet. A continued one does not count: it was accepted long ago."""
        return self.state is RequestState.PLACED and not self.is_continued
