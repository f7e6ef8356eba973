"""What was decided about the newest requests, and what came of it: where `prebled explain` gets its answers.

Bounded: past `kept` requests the one whose newest decision is the oldest is forgotten. Decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from prebled.core.decisions import Cause, Explanation, Placed, Reject
from prebled.core.types import RequestId

_Entry: TypeAlias = tuple[Placed | Reject, int, int | None, Cause | None]
"""The newest decision on a request, its placements so far, `cached_tokens` and `mispredicted` as in `Explanation`."""


class Journal:
    """See the module."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._entries: OrderedDict[RequestId, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def placed(self, request_id: RequestId, placement: Placed) -> None:
        """A request has (or, once more, has) a worker."""
        self._add(request_id, placement, 1)

    def refused(self, request_id: RequestId, reject: Reject) -> None:
        """A request was refused, perhaps after placements that came to nothing."""
        self._add(request_id, reject, 0)

    def started(self, request_id: RequestId, cached_tokens: int) -> None:
        """The engine of the newest placement says what it took from its cache."""
        entry = self._entries.get(request_id)
        if entry is not None:
            self._entries[request_id] = (entry[0], entry[1], cached_tokens, None)

    def mispredicted(self, request_id: RequestId, cause: Cause) -> None:
        """The request has ended, and so much is known of why that was not what had been predicted."""
        entry = self._entries.get(request_id)
        if entry is not None:
            self._entries[request_id] = (*entry[:3], cause)

    def decision(self, request_id: RequestId) -> Placed | Reject | None:
        """The newest decision on a request; None if it is not remembered."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry[0]

    def explanation(self, request_id: RequestId) -> Explanation | None:
        """All that is remembered of a request."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        decision, placements, cached_tokens, cause = entry
        if isinstance(decision, Reject):
            return Explanation(request_id, None, decision, placements)
        differing = 0 if cached_tokens is None else decision.matched_tokens - cached_tokens
        return Explanation(
            request_id, decision.written_out(), None, placements, cached_tokens, differing, cause if differing else None
        )

    def _add(self, request_id: RequestId, decision: Placed | Reject, placements: int) -> None:
        entries = self._entries
        if request_id in entries:
            placements += entries.pop(request_id)[1]
        entries[request_id] = (decision, placements, None, None)
        if len(entries) > self._kept:
            entries.popitem(last=False)
