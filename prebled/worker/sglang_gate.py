"""Lets no page be computed twice at once: a hook around SGLang's admission of a request to a prefill batch.

SGLang matches a request against its cache when it considers it for a batch, and what a batch computes is in the cache
only when its results are. Requests that share a prefix which is not cached yet would so compute it side by side, each
for itself: a burst of equal prompts, all of it. Here the batch is closed before a request whose next page is computed by
one that is already in it, or by one of the last batch whose results are not there yet (overlap scheduling). In the next
batch it finds that page in the cache, with all that follows it in common.

Of two requests that the cache holds alike and that agree in the page behind, both would compute that page; of others
none does. So one look into a dict tells, and nothing is matched for it.

Rules it keeps:
- The order is not its business and is not changed: nobody overtakes a request that closes a batch. The first of the
  queue closes one only while a prompt computed in chunks, or one in flight, computes its next page; so it is admitted
  at the latest at the second order after the last chunk that both have in common. No bound of `LocalScheduler` on slots
  changes.
- The device is not left idle by it: a batch is closed only if there is something in it or in flight.
- The same calls give the same answers on every tensor-parallel rank (no clock, no chance).

It does not touch caches in which what one request computes is not there whole for the next: disabled ones, and those
of models with sliding windows or recurrent state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from prebled.worker.sglang_matches import Beginning, beginning_of, tokens_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder


class PageGate:
    """Hook around `PrefillAdder.add_one_req`. One per process, as there is one scheduler per process."""

    def __init__(self, closed: AddReqResult) -> None:
        """`closed`: what SGLang's own code returns when a batch takes no more."""
        self._closed = closed
        self._adder: ref[PrefillAdder] | None = None  # of the batch that is being made
        self._members: list[tuple[Req, Beginning, int]] = []  # with the number of output tokens when admitted
        self._computed: set[Beginning] = set()

    def __call__(
        self, add: Callable[..., AddReqResult], adder: PrefillAdder, req: Req, *args: Any, **options: Any
    ) -> AddReqResult:
        cache = adder.tree_cache
        if cache.disable or cache.supports_swa() or cache.supports_mamba():
            return add(adder, req, *args, **options)
        if self._adder is None or self._adder() is not adder:
            self._begin(adder)
        tokens = tokens_of(req)
        beginning = beginning_of(req, tokens, req.num_matched_prefix_tokens, adder.page_size)
        # The last token is always computed: a page that ends with it cannot be taken from the cache.
        if beginning in self._computed and beginning[0] + adder.page_size < len(tokens):
            return self._closed
        result = add(adder, req, *args, **options)
        if adder.can_run_list and adder.can_run_list[-1] is req:
            self._admit(req, beginning)
        return result

    def _begin(self, adder: PrefillAdder) -> None:
        """The first request is considered for another batch. One that is computed in chunks is in it already."""
        in_flight = [
            beginning
            for req, beginning, outputs in self._members
            if len(req.output_ids) == outputs and not req.finished()
        ]
        self._adder = ref(adder)
        self._members.clear()
        self._computed = set(in_flight)
        for req in adder.can_run_list:
            self._admit(req, beginning_of(req, tokens_of(req), req.prefix_len, adder.page_size))

    def _admit(self, req: Req, beginning: Beginning) -> None:
        self._members.append((req, beginning, len(req.output_ids)))
        self._computed.add(beginning)
