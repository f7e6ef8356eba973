"""Lets no page be computed twice at once: hooks around SGLang's admission of requests to a prefill batch.

SGLang matches a request against its cache when it considers it for a batch, and what a batch computes is in the cache
only when its results are there. Requests that share a prefix which is not cached yet would so compute it side by side,
each for itself: a burst of equal prompts, all of it. Here a request is passed over if its next page is computed by
another in the same batch, or by one of the last batch whose results are not there yet (overlap scheduling). In the next
batch it finds that page in the cache, with all that the two have in common behind it.

Two requests that the cache holds alike, and that agree in the page behind, would both compute that page; no others
would. So one look into a set tells, and nothing is matched for it. But SGLang has matched the request that is passed
over, in vain: after `MOST_PASSED_OVER` of them the batch is closed.

Rules it keeps:
- The device is not left idle by it: a request is passed over only if there is something in the batch or in flight.
- No starvation. The first of the queue is passed over only while a prompt computed in chunks, or one in flight,
  computes its next page, and each chunk of that brings its pages: so it is admitted, room provided, at the latest
  `LAG` orders after the last chunk of what the two have in common, and no request that computes any of this overtakes
  it meanwhile. With at most b requests to a batch and c chunks to a prompt a request with k older ones beside it is
  taken within (k + 1) * (patience + 1 + b * (1 + c + `LAG`)) slots, `patience` as in `core.local_scheduler`.
- The same calls give the same answers on every tensor-parallel rank (no clock, no chance, no set order).

It leaves caches alone in which what one request computes is not there whole for the next: disabled ones, and those of
models with sliding windows or recurrent state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from prebled.worker.sglang_matches import Beginning, beginning_of, tokens_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

MOST_PASSED_OVER = 16
"""In one batch."""


class PageGate:
    """Hooks around two methods of `PrefillAdder`. One per process, as there is one scheduler per process."""

    def __init__(self, next_one: AddReqResult, closed: AddReqResult) -> None:
        """What SGLang's own code returns if the next request is to be considered, and if the batch takes no more."""
        self._next_one = next_one
        self._closed = closed
        self._adder: ref[PrefillAdder] | None = None  # of the batch that is being made
        self._members: list[tuple[Req, Beginning, int]] = []  # of that batch, each with its output tokens until then
        self._computed: set[Beginning] = set()  # by these and by those in flight
        self._passed_over = 0

    def around_chunk(self, add: Callable[..., Req | None], adder: PrefillAdder, req: Req) -> Req | None:
        """Around `add_chunked_req`: the next chunk of a prompt is the first in a batch. It may take all its room."""
        chunked = add(adder, req)
        if not _is_left_alone(adder):
            self._begin(adder)
        return chunked

    def around_one(
        self, add: Callable[..., AddReqResult], adder: PrefillAdder, req: Req, *args: Any, **options: Any
    ) -> AddReqResult:
        """Around `add_one_req`: a request of the queue is considered, in its order."""
        if _is_left_alone(adder):
            return add(adder, req, *args, **options)
        if self._adder is None or self._adder() is not adder:
            self._begin(adder)
        tokens = tokens_of(req)
        matched, page = req.num_matched_prefix_tokens, adder.page_size
        beginning = beginning_of(req, tokens, matched, page)
        # Some tokens are computed even if they are cached: the last one, and those whose logprobs are asked for.
        if beginning in self._computed and matched + page <= req._compute_max_prefix_len(len(tokens)):
            self._passed_over += 1
            return self._closed if self._passed_over >= MOST_PASSED_OVER else self._next_one
        result = add(adder, req, *args, **options)
        if adder.can_run_list and adder.can_run_list[-1] is req:
            self._admit(req, beginning)
        return result

    def _begin(self, adder: PrefillAdder) -> None:
        """Another batch is being made."""
        in_flight = [
            beginning
            for req, beginning, outputs in self._members
            if len(req.output_ids) == outputs and not req.finished()
        ]
        self._adder = ref(adder)
        self._members.clear()
        self._computed = set(in_flight)
        self._passed_over = 0
        for req in adder.can_run_list:
            self._admit(req, beginning_of(req, tokens_of(req), req.prefix_len, adder.page_size))

    def _admit(self, req: Req, beginning: Beginning) -> None:
        self._members.append((req, beginning, len(req.output_ids)))
        self._computed.add(beginning)


def _is_left_alone(adder: PrefillAdder) -> bool:
    cache = adder.tree_cache
    return bool(cache.disable or cache.supports_swa() or cache.supports_mamba())
