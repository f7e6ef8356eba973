"""The queue policy `groups` inside SGLang's scheduler: `LocalScheduler` around `SchedulePolicy.calc_priority`.

SGLang 0.5.23 asks for an order before every prefill batch, that is whenever a request waits and the running batch is
not full. Its policies either match the whole queue against the cache every time, or (`fcfs`, on which `groups` runs)
not at all. Here a few matches per order keep the shares of all known (`sglang_matches`), and only what has changed is
put in its place: a forward pass drives the queue out of the processor's caches, and touching hundreds of requests after
it takes longer than all the rest.

Rule it keeps: every tensor-parallel rank runs this and must find the same order, so it uses only what all ranks see:
no clock, no randomness, no set order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prebled.core.local_scheduler import LocalScheduler
from prebled.worker.sglang_matches import Match, QueueMatches

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import SchedulePolicy


class GroupOrder:
    """Hook around `calc_priority`. One per process, as there is one scheduler per process."""

    def __init__(self, match: Match) -> None:
        self._matches = QueueMatches(match, self._found)
        self._scheduler = LocalScheduler()
        # Requests are numbered in the order of the queue when they are first seen, which is that of their arrival; one
        # that SGLang puts back (retracted for want of memory) keeps its number.
        self._arrivals: WeakKeyDictionary[Req, int] = WeakKeyDictionary()
        self._arrived = 0
        self._waiting: dict[int, Req] = {}
        self._arrival_of: dict[Req, int] = {}  # of those in the queue
        self._ordered: list[Req] = []  # as the scheduler has them

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
        came, gone = self._take_over(waiting_queue)
        if policy.waiting_queue_prefix_matched(waiting_queue):
            for req in waiting_queue:
                self._found(req)
        else:
            cache = policy.tree_cache
            # The number of tokens is no exact one in SGLang 0.5.23, but it grows whenever a prompt is computed.
            signs = (cache.evictable_size(), cache.protected_size(), options.get("processed_tokens"))
            self._matches.update(came, gone, cache, signs)
        self._arrange(waiting_queue)

    def _take_over(self, queue: list[Req]) -> tuple[list[Req], list[Req]]:
        """Book what has come to the queue since the last order and what has gone from it. `_ordered` keeps the rest."""
        came, gone = _cut_ends(self._ordered, queue) or _differences(self._ordered, queue)
        if gone:
            numbers = [self._arrival_of.pop(req) for req in gone]
            for number in numbers:
                del self._waiting[number]
            self._scheduler.drop(numbers)
        for req in came:
            number = self._arrivals.get(req, 0)
            if not number:
                number = self._arrived = self._arrivals[req] = self._arrived + 1
            self._arrival_of[req] = number
            self._waiting[number] = req
        return came, gone

    def _found(self, req: Req) -> None:
        self._scheduler.put(self._arrival_of[req], req.seqlen, req.num_matched_prefix_tokens)

    def _arrange(self, queue: list[Req]) -> None:
        slipped_in = self._scheduler.slip_in()
        if slipped_in is None:
            self._ordered = list(map(self._waiting.__getitem__, self._scheduler.arrange()))
            queue[:] = self._ordered
            return
        del queue[len(self._ordered) :]
        if queue != self._ordered:
            queue[:] = self._ordered
        for slot, number in slipped_in:
            req = self._waiting[number]
            self._ordered.insert(slot, req)
            queue.insert(slot, req)


def _cut_ends(before: list[Req], now: list[Req]) -> tuple[list[Req], list[Req]] | None:
    """What has come and what has gone if, as mostly, those that have come are the last and those that have gone were
    the first, which are then cut off `before`; None otherwise. Lists are compared by which objects they hold."""
    if not now or now[0] not in before:
        return None
    taken = before.index(now[0])
    came = now[len(before) - taken :]
    gone = before[:taken]
    del before[:taken]
    del now[len(before) :]
    is_so = before == now
    now += came
    if is_so:
        return came, gone
    before[:0] = gone
    return None


def _differences(before: list[Req], now: list[Req]) -> tuple[list[Req], list[Req]]:
    """What has come and what has gone, in the order of the lists; what has gone is removed from `before`."""
    were, are = set(before), set(now)
    gone = [req for req in before if req not in are]
    before[:] = [req for req in before if req in are]
    return [req for req in now if req not in were], gone
