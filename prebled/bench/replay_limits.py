"""Ends a replay early, once it is certain that its load is beyond the limits that somebody is searching for.

A time to the first token only grows, and a request that is late stays late. So what has passed by now, for requests
that wait and for those that decode, is a lower bound of what the whole replay would find; those that have not come yet
count as nothing.

Rule kept: a replay that is ended would have been beyond the limits as a whole, in figures rounded as those of reports
are. One that is not ended may be as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import final

import msgspec

from prebled.bench.replay_report import DIGITS
from prebled.bench.replay_request import ReplayRequest
from prebled.core.types import RequestId

LOOKS_PER_EVENT = 8
"""So many requests in flight are looked at for each arrival and each end, on average."""

EVENTS_PER_CHECK = 64
"""All of them are looked at together, after so many events at least."""


class Limits(msgspec.Struct, frozen=True):
    """A load is beyond them if a request is refused, if the mean TTFT is `ttft_mean_s` or more, or if the share of
    requests in time, with a TTFT of at most `ttft_s` and a TPOT of at most `tpot_s`, is below `in_time`."""

    ttft_mean_s: float = inf
    ttft_s: float = inf
    tpot_s: float = inf
    in_time: float = 0.0

    def is_late(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether a request that took so long is not in time."""
        return ttft_s > self.ttft_s or tpot_s > self.tpot_s


class BeyondLimits(Exception):
    """The replay was ended early; there is no result."""


@final
class LimitWatch:
    """Of one replay."""

    def __init__(self, limits: Limits, requests: int, live: Mapping[RequestId, ReplayRequest]) -> None:
        """`requests`: how many the whole replay has. `live`: those in flight at any time."""
        self._limits = limits
        self._requests = requests
        self._live = live
        # A report's mean is rounded, and our sum is not exact: one of its digits is more than the two together.
        self._most_ttft_s = (limits.ttft_mean_s + 10**-DIGITS) * requests
        self._ended_ttft_s = 0.0
        self._ended_late = 0
        self._events = 0  # since the last check

    def arrived(self, now: float) -> None:
        """A request has come. Raises BeyondLimits."""
        self._check_at_times(now)

    def ended(self, request: ReplayRequest, now: float) -> None:
        """A request has ended, and is live no longer. Raises BeyondLimits."""
        if request.finished_at < 0:
            raise BeyondLimits
        ttft_s, is_late = self._so_far(request, now)
        self._ended_ttft_s += ttft_s
        self._ended_late += is_late
        self._check_at_times(now)

    def _check_at_times(self, now: float) -> None:
        self._events += 1
        if self._events < max(EVENTS_PER_CHECK, len(self._live) // LOOKS_PER_EVENT):
            return
        self._events = 0
        total_s, late = self._ended_ttft_s, self._ended_late
        for request in self._live.values():
            ttft_s, is_late = self._so_far(request, now)
            total_s += ttft_s
            late += is_late
        if total_s > self._most_ttft_s or 1 - late / self._requests < self._limits.in_time:
            raise BeyondLimits

    def _so_far(self, request: ReplayRequest, now: float) -> tuple[float, bool]:
        """The TTFT by now, and whether the request is late by now."""
        ttft_s = request.ttft_s(now)
        return ttft_s, self._limits.is_late(ttft_s, request.tpot_s(now))
