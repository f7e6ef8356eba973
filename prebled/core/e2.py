"""E2 with priced recomputation: exploit and explore as consequences of one cost.

The worker with the least cost takes the request, all that can hold it being asked:

    cost(w) = wait(w) - overtaking * c(w) * b(w) + p(w) + (base + backlog * least_wait) / (1 + sharing * k) * r(w)
              + (decode * D(w) + waiting * Q(w) + overtaken * c(w) * Q(w)) * p(w) + output * o(w)

wait: prefill seconds queued or running on w, as of now, b: those behind the prefill in progress; c: the cached share of
the prompt there, prefixes in flight counting as cached; p: prefill seconds of its uncached tokens, r: the same tokens'
seconds on a worker of median speed; least_wait: the least wait of all; k: requests in flight on the best holder that
share at least half of what matched there; Q: requests in flight on w without a first token, D: sequences that decode
there; o: seconds by which both will slow a mean output. The weights are settings (`CoreSettings.e2_*`).

A second of recomputation delays everyone who comes later, not only this request, so it is priced at about three; more
when every worker is behind (stick to the caches), less for a prefix that many ask for at once (copy it). What is priced
so is the work that a cache would save, the same wherever it is done: a slow worker is not to be avoided more than its
slowness costs (with p in place of r, requests would queue for the fast one while it stands idle).

A worker's queue is in the order of cached shares (`core.local_scheduler`): a request overtakes the more of those queued
the more of its prompt is cached there. It waits for the rest only, and those overtaken wait for it. A prefill also
slows the sequences that decode beside it, and they the output that follows it. Who still waits is slowed the more: all
of its output is to come, of one who decodes half on average.

docs/decisions/0006 says what of Preble's E2 (section 3.2) this replaces.

In the reasons a placement is called exploit if the chosen worker holds more of the prompt than it misses (the paper's
test, on the worker that was chosen), explore otherwise. Where the best holder of more than half of the prompt was left
for a worker that holds less, the reason names the term that did it: replicated (without its sharers the prefix would
have stayed), else rebalanced (its queue is longer), else steered (more requests are in flight there).
"""

from __future__ import annotations

from prebled.core.decisions import Mode
from prebled.core.e2_terms import Terms, Weights, costs, terms_of
from prebled.core.sight import TIE_S, Choice, Sight, Vector, least, lowest
from prebled.settings import CoreSettings


class E2:
    """See the module."""

    name = "e2"

    def __init__(self, settings: CoreSettings) -> None:
        self._base = settings.e2_base_price
        self._backlog = settings.e2_backlog_price
        self._sharing = settings.e2_sharing
        self._weights = Weights(
            settings.e2_decode,
            settings.e2_waiting,
            settings.e2_output,
            settings.e2_overtaking,
            settings.e2_overtaken,
        )

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        seen, last_booked, cached_tokens = terms_of(sight), sight.last_booked, sight.cached_tokens
        most, best, sharers = seen.most, -1, 0
        if most:
            best = least(seen.wait_s, last_booked, seen.holders)
            sharers = sight.sharing.count(sight.slots.item(best), sight.hashes, most // sight.block_tokens)
        dearness = self._base + self._backlog * seen.least_wait_s
        shared = dearness / (1 + self._sharing * sharers)
        plain_s, total_s = costs(seen, sight, shared, self._weights)
        chosen = least(total_s, last_booked)
        chosen_tokens = int(cached_tokens.item(chosen))
        mode: Mode = "exploit" if 2 * chosen_tokens > sight.prompt_tokens else "explore"
        adjusted: tuple[str, ...] = ()
        if 2 * most > sight.prompt_tokens and chosen_tokens < most:
            cold, recomputed_s = dearness - shared, seen.recomputed_s  # by how much sharers made a second cheaper
            kept = total_s[best] + cold * recomputed_s[best] <= total_s[chosen] + cold * recomputed_s[chosen]
            adjusted = (_left(sight, seen, (plain_s, total_s), best, chosen, sharers if kept else 0),)
        elif plain_s[other := lowest(plain_s)] < plain_s[chosen] - TIE_S:
            adjusted = (_steered(sight, other, chosen, plain_s[chosen] - plain_s[other]),)
        return Choice(chosen, mode, seen.wait_s, seen.prefill_s, total_s, None, adjusted)


def _left(sight: Sight, seen: Terms, costs_s: tuple[Vector, Vector], best: int, chosen: int, sharers: int) -> str:
    """Why the best holder was left. `costs_s` as of `costs`; `sharers`: as many as made the difference."""
    ids, requests = sight.ids, sight.requests
    more = int(sight.cached_tokens[best] - sight.cached_tokens[chosen])
    if sharers:
        return (
            f"replicated: {sharers} requests in flight on {ids[best]} share the prefix (k={sharers}); "
            f"{ids[chosen]} computes {more} tokens of it anew"
        )
    plain_s, total_s = costs_s
    longer_s = seen.wait_s[best] - seen.wait_s[chosen]
    if longer_s >= total_s[best] - plain_s[best] - (total_s[chosen] - plain_s[chosen]):
        return f"rebalanced: {ids[best]} holds {more} more tokens, but its queue is {longer_s:.3g} s longer"
    return (
        f"steered: {ids[best]} holds {more} more tokens, but {int(requests[best])} requests are in flight there, "
        f"{int(requests[chosen])} on {ids[chosen]}"
    )


def _steered(sight: Sight, other: int, chosen: int, less_s: float) -> str:
    """Where the requests in flight decided between workers: who would have been chosen without them."""
    requests = sight.requests
    return (
        f"steered: {sight.ids[other]} would cost {less_s:.3g} s less, but {int(requests[other])} requests are in "
        f"flight there, {int(requests[chosen])} on {sight.ids[chosen]}"
    )
