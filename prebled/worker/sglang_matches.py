"""How much of each waiting request SGLang's cache holds, without looking them all up at every step.

A request is matched against the cache when it comes. From then on one match speaks for all its kin: requests whose
prompts agree in the matched part and in the page behind it. For these the cache holds the same, page for page: it
cannot lose a part of one without losing it for all, nor gain the next page of one without gaining it for all. So per
order of the queue, beside the new requests,
- kin are looked at through one of their requests, the longest unchecked first: one, and one more for every
  `TOKENS_PER_CHECK` uncached tokens of the requests taken from the queue, up to `MOST_CHECKS`. The cache changes as
  fast as tokens are computed, and so the looking stays a fixed small share of the computing;
- up to `FOLLOWED` matches are made where a change is known or likely: of requests whose kin were found changed, and of
  the kin of a request that was just taken, since what it computes is their next page.

Of n waiting requests each is thus known anew at the latest n + ceil(n / FOLLOWED) orders after the cache changed for it
(ceil(n / MOST_CHECKS) + ceil(n / FOLLOWED) under full load); where a taken request computed the change, at the order
after it, or `FOLLOWED` at a time from then on. What a request takes from the cache never rests on this: SGLang matches
it again when it admits it.

Rule it keeps: the same calls give the same matches on every tensor-parallel rank (no clock, no chance, no set order).
It does not know groups or the order of the queue.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import xxhash

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

TOKENS_PER_CHECK = 512
MOST_CHECKS = 8
FOLLOWED = 4

LAG = 2
"""A step's tokens are in the cache at the next order; with overlap scheduling, which asks for the next batch before it
has the results of this one, at the order after that."""

Match: TypeAlias = "Callable[[Req, Any, array[int]], object]"
"""SGLang's `match_kv_cache`: looks a request with these tokens up in the cache and notes the outcome on the request."""

Beginning: TypeAlias = tuple[int, int, Hashable, Hashable]
"""What requests that the cache holds alike have in common: the number of matched tokens, the hash of these and of the
page behind them, and the namespace."""


class _Kin:
    """Requests that the cache holds alike: `matched` tokens of each, last seen in `state` of the cache."""

    __slots__ = ("beginning", "matched", "members", "state")

    def __init__(self, beginning: Beginning) -> None:
        self.beginning = beginning
        self.matched = beginning[0]
        self.members: dict[Req, None] = {}
        self.state = -1


class QueueMatches:
    """Of one queue and one cache."""

    def __init__(self, match: Match, found: Callable[[Req], None]) -> None:
        """`found` is called with each request that was looked up."""
        self._match = match
        self._found = found
        self._state = 0
        self._signs: Hashable = None
        self._uncached_tokens = 0  # of requests taken, that no check was made for yet
        self._kin: OrderedDict[Beginning, _Kin] = OrderedDict()  # the longest unchecked first
        self._kin_of: dict[Req, _Kin] = {}
        self._outdated: dict[Req, None] = {}  # those whose kin were found changed, in that order
        self._likely: dict[Beginning, int] = {}  # kin that may gain, and for how many orders they are looked at

    def update(self, came: Iterable[Req], gone: Iterable[Req], cache: Any, signs: Hashable) -> None:
        """Match what has come to the queue, forget what has gone from it, and look at some of the others if the cache
        has changed, which it has not where `signs` are those of the last call."""
        if signs != self._signs:
            self._signs = signs
            self._state += 1
        for req in gone:
            self._leave(req)
            self._uncached_tokens += req.seqlen - req.num_matched_prefix_tokens
        self._follow(cache)
        for _ in range(1 + self._more_checks()):
            kin = next(iter(self._kin.values()), None)
            if kin is None or kin.state == self._state:
                break
            self._check(kin, cache)
        for req in came:
            self._look_up(req, cache)

    def _more_checks(self) -> int:
        """How many are due for the tokens computed; more than there are kin never are."""
        due = min(self._uncached_tokens // TOKENS_PER_CHECK, len(self._kin))
        checks = min(due, MOST_CHECKS - 1)
        self._uncached_tokens = (due - checks) * TOKENS_PER_CHECK + self._uncached_tokens % TOKENS_PER_CHECK
        return checks

    def _leave(self, req: Req) -> None:
        """A request has gone: taken, as a rule, and then it computes the next page of its kin."""
        self._outdated.pop(req, None)
        kin = self._kin_of.pop(req, None)
        if kin is None:
            return
        del kin.members[req]
        if kin.members:
            self._likely[kin.beginning] = LAG
        else:
            self._forget(kin)

    def _follow(self, cache: Any) -> None:
        outdated = list(islice(self._outdated, FOLLOWED))
        for req in outdated:
            del self._outdated[req]
            self._look_up(req, cache)
        for beginning in list(islice(self._likely, FOLLOWED - len(outdated))):
            kin = self._kin.get(beginning)
            orders_left = self._likely.pop(beginning, 0) - 1
            if kin is not None and (kin.state == self._state or not self._check(kin, cache)) and orders_left > 0:
                self._likely[beginning] = orders_left

    def _check(self, kin: _Kin, cache: Any) -> bool:
        """Look one of them up. If that finds a change, all others are outdated."""
        first = next(iter(kin.members))
        tokens = tokens_of(first)
        self._match(first, cache, tokens)
        matched = first.num_matched_prefix_tokens
        if matched == kin.matched:
            self._mark(kin)
            return False
        self._forget(kin)
        for req in kin.members:
            del self._kin_of[req]
            self._outdated[req] = None
        del self._outdated[first]
        beginning = self._join(first, tokens, cache)
        if matched > kin.matched:
            self._likely[beginning] = LAG  # what computes this prefix may go on to compute more of it
        return True

    def _look_up(self, req: Req, cache: Any) -> None:
        tokens = tokens_of(req)
        self._match(req, cache, tokens)
        self._join(req, tokens, cache)

    def _join(self, req: Req, tokens: array[int], cache: Any) -> Beginning:
        """Put a request that was just looked up among its kin; who they are."""
        beginning = beginning_of(req, tokens, req.num_matched_prefix_tokens, cache.page_size)
        kin = self._kin.get(beginning)
        if kin is None:
            kin = self._kin[beginning] = _Kin(beginning)
        kin.members[req] = None
        self._kin_of[req] = kin
        self._mark(kin)
        self._found(req)
        return beginning

    def _mark(self, kin: _Kin) -> None:
        kin.state = self._state
        self._kin.move_to_end(kin.beginning)

    def _forget(self, kin: _Kin) -> None:
        del self._kin[kin.beginning]
        self._likely.pop(kin.beginning, None)


def beginning_of(req: Req, tokens: array[int], matched: int, page_size: int) -> Beginning:
    """Of a request with these tokens, so many of them matched."""
    digest = xxhash.xxh3_64_intdigest(memoryview(tokens)[: matched + page_size])
    return (matched, digest, req.extra_key, req.cache_salt)


def tokens_of(req: Req) -> array[int]:
    """Of the prompt, and of what a retracted request has already made of it."""
    tokens: array[int] = req.origin_input_ids
    return tokens + req.output_ids if req.output_ids else tokens
