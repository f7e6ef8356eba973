"""The queue policy `groups` inside SGLang's scheduler: `LocalScheduler` around `SchedulePolicy.calc_priority`.

SGLang 0.5.23 asks for an order before every prefill batch. Its policies either match the whole queue against the cache
every time, or (`fcfs`, on which `groups` runs) not at all. Here a request is matched when it is new, and again, the
longest unmatched first and a bounded number at a time, when the cache has changed since. A request's order may thus
rest on an older match; what it takes from the cache never does, since SGLang matches again when it admits it.

Rule it keeps: every tensor-parallel rank runs this and must find the same order, so it uses only what all ranks see:
no clock, no randomness, no set order.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nsmallest
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prebled.core.local_scheduler import LocalScheduler, Waiting

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import SchedulePolicy

REMATCHED = 32
"""Waiting requests matched again per order, at most; new ones come on top."""


class _Seen:
    """What is remembered of a waiting request. `match`: the state of the cache it was last matched against."""

    __slots__ = ("arrival", "match")

    def __init__(self, arrival: int) -> None:
        self.arrival = arrival
        self.match = -1


class GroupOrder:
    """Hook around `calc_priority`. One per process, as there is one scheduler per process.

    `match` is SGLang's `match_kv_cache`: it looks a request up in the cache and notes the outcome on the request."""

    def __init__(self, match: Callable[[Req, Any], object]) -> None:
        self._match = match
        self._scheduler = LocalScheduler()
        self._seen: WeakKeyDictionary[Req, _Seen] = WeakKeyDictionary()
        self._arrivals = 0
        self._cache_state = 0
        self._cache_sizes: tuple[int, int] = (0, 0)

    def __call__(
        self,
        calc_priority: Callable[..., None],
        policy: SchedulePolicy,
        waiting_queue: list[Req],
        *args: Any,
        **options: Any,
    ) -> None:
        calc_priority(policy, waiting_queue, *args, **options)
        if policy.enable_priority_scheduling:
            return  # the operator asked for explicit priorities, which SGLang has just sorted by
        seen = [self._note(req) for req in waiting_queue]
        if not policy.waiting_queue_prefix_matched(waiting_queue):
            self._rematch(waiting_queue, seen, policy.tree_cache)
        waiting = [
            Waiting(req.seqlen, req.num_matched_prefix_tokens, note.arrival)
            for req, note in zip(waiting_queue, seen, strict=True)
        ]
        waiting_queue[:] = [waiting_queue[index] for index in self._scheduler.order(waiting)]

    def _note(self, req: Req) -> _Seen:
        """Requests are numbered in the order of the queue when they are first seen, which is that of their arrival; a
        request that SGLang puts back (retracted for want of memory) keeps its number."""
        note = self._seen.get(req)
        if note is None:
            self._arrivals += 1
            note = self._seen[req] = _Seen(self._arrivals)
        return note

    def _rematch(self, waiting_queue: list[Req], seen: list[_Seen], tree_cache: Any) -> None:
        sizes = (tree_cache.evictable_size(), tree_cache.protected_size())
        if sizes != self._cache_sizes:  # something was inserted or evicted
            self._cache_sizes = sizes
            self._cache_state += 1
        stale = [index for index, note in enumerate(seen) if note.match != self._cache_state]
        new = sum(seen[index].match < 0 for index in stale)
        for index in nsmallest(new + REMATCHED, stale, key=lambda index: seen[index].match):
            self._match(waiting_queue[index], tree_cache)
            seen[index].match = self._cache_state
