"""Placing one request: match its prefix, let the policy choose, book, and keep the reason.

It owns the prefix tree, the loads and the policy; which workers may be chosen, and what a request goes through, is the
scheduler's. Every booking is one on the tree and one on the loads, made here and ended here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prebled.core.blocks import cacheable_blocks, hash_path, namespace_seed
from prebled.core.cost import CostModel
from prebled.core.decisions import Candidate, Placement
from prebled.core.events import RequestArrived
from prebled.core.load import Loads
from prebled.core.prefix_tree import PrefixTree
from prebled.core.requests import Request
from prebled.core.sharing import Sharing
from prebled.core.sight import Choice, Memory, Policy, Sight
from prebled.core.workers import Candidates, Worker

SHOWN = 8
"""Candidates kept with a placement."""

SORTED_WHOLE = 128
"""Among more candidates than these it is quicker to look for the cheapest before sorting them."""

_NOTHING = (0.0,) * SHOWN

EXPIRED_PER_STEP = 32
"""Requests that may leave the history window in one step, so that the first event after a pause is not a slow one."""


class Placer:
    """See the module. `cost` models every worker."""

    def __init__(self, policy: Policy, tree: PrefixTree, cost: CostModel, *, block_tokens: int) -> None:
        self.tree = tree
        self.loads = Loads(cost)
        self._policy = policy
        self._memory = policy if isinstance(policy, Memory) else None
        self._sharing = Sharing()
        self._cost = cost
        self._block_tokens = block_tokens
        self._slot_count = 0

    def add_worker(self, worker: Worker) -> None:
        """A worker that starts empty and idle."""
        self._slot_count = max(self._slot_count, worker.slot + 1)
        self.resize_worker(worker)
        self.loads.reset(worker.slot)

    def resize_worker(self, worker: Worker) -> None:
        """Its capacity is known, or has changed."""
        self.tree.set_capacity(worker.slot, worker.capacity.kv_tokens // self._block_tokens)

    def forget_worker(self, worker: Worker) -> None:
        """Its cache is gone. Its requests have been released before."""
        self.tree.forget_worker(worker.slot)
        self.loads.reset(worker.slot)
        if self._memory is not None:
            self._memory.forgot(worker.slot)

    def advance(self, now: float) -> None:
        """Time has passed."""
        self.tree.advance(now, EXPIRED_PER_STEP)
        self.loads.advance(now)

    def request(self, event: RequestArrived) -> Request:
        """The request of this event, its prompt hashed."""
        seed = namespace_seed(event.model, event.lora, event.cache_salt)
        return Request(
            event.request_id,
            hash_path(event.tokens, self._block_tokens, seed),
            len(event.tokens) // 4,
            event.max_tokens,
            is_continued=event.continued,
        )

    def place(self, request: Request, candidates: Candidates, now: float) -> Placement:
        """Choose one of the candidates (at least one) and book the request there."""
        prompt_tokens = request.prompt_tokens
        slots = candidates.slots
        match = self.tree.match(request.hashes)
        block_tokens = self._block_tokens
        most_blocks = cacheable_blocks(prompt_tokens, block_tokens)
        cached_tokens = match.held_tokens(self._slot_count, block_tokens, most_blocks)
        if len(slots) != self._slot_count:
            cached_tokens = cached_tokens.take(slots)
        loads = self.loads
        sight = Sight(
            prompt_tokens,
            cached_tokens,
            loads.table if len(slots) == self._slot_count else loads.table.take(slots, axis=1),
            self._cost,
            now,
            candidates.ids,
            slots,
            request.hashes,
            block_tokens,
            self._sharing,
            self.tree,
        )
        choice = self._policy.choose(sight)
        placement = self._placement(request, candidates, choice, cached_tokens)
        worker = candidates.workers[choice.chosen]
        request.worker = worker
        request.kept_blocks = match.held_by(worker.slot)
        request.visit = self.tree.book(match, worker.slot, now)
        work = loads.book(worker.slot, prompt_tokens, placement.missed_tokens, request.max_tokens)
        work.sharing = self._sharing.book(worker.slot, request.hashes)
        request.work = work
        if self._memory is not None:
            self._memory.booked(sight, choice, work)
        worker.requests[request.request_id] = request
        return placement

    def start(self, request: Request, now: float) -> None:
        """The first token of a placed request came."""
        work = request.work
        assert work is not None
        self.loads.first_token(work)
        if self._memory is not None:
            self._memory.started(work, now)

    def finish(self, request: Request, output_tokens: int) -> None:
        """A request ended by itself after so many tokens; its release follows."""
        self.loads.learn_output(output_tokens)
        if self._memory is not None and request.work is not None:
            self._memory.finished(request.work, output_tokens)

    def release(self, request: Request, *, is_computed: bool) -> None:
        """End the booking of a placed request. `is_computed`: its prompt is, or may be, in the worker's cache."""
        worker, work, visit = request.worker, request.work, request.visit
        assert worker is not None
        assert work is not None
        assert visit is not None
        del worker.requests[request.request_id]
        self.loads.release(work)
        self._sharing.release(work.slot, work.sharing)
        if self._memory is not None:
            self._memory.released(work, is_computed=is_computed)
        if not is_computed:
            self.tree.withdraw(visit, request.kept_blocks)
        request.worker = request.work = request.visit = None

    def _placement(
        self, request: Request, candidates: Candidates, choice: Choice, cached_tokens: NDArray[np.int64]
    ) -> Placement:
        matched_tokens = int(cached_tokens[choice.chosen])
        return Placement(
            candidates.ids[choice.chosen],
            choice.mode,
            self._policy.name,
            matched_tokens,
            request.prompt_tokens - matched_tokens,
            _shown(candidates, choice, cached_tokens),
            choice.adjusted,
        )


def _shown(candidates: Candidates, choice: Choice, cached_tokens: NDArray[np.int64]) -> tuple[Candidate, ...]:
    """The cheapest candidates, cheapest first, the chosen one among them."""
    order = _cheapest(choice.total_s)
    indices = order.tolist()
    if choice.chosen not in indices:
        order[-1] = indices[-1] = choice.chosen
    ids = candidates.ids
    return tuple(
        map(
            Candidate,
            [ids[index] for index in indices],
            cached_tokens[order].tolist(),
            choice.load_s[order].tolist(),
            choice.eviction_s[order].tolist() if choice.eviction_s is not None else _NOTHING,
            choice.prefill_s[order].tolist(),
            choice.total_s[order].tolist(),
        )
    )


def _cheapest(total_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """The indices of the least totals, in order, equal ones by slot."""
    if len(total_s) <= SORTED_WHOLE:
        return total_s.argsort(kind="stable")[:SHOWN]
    near: NDArray[np.int64] = (total_s <= np.partition(total_s, SHOWN)[SHOWN]).nonzero()[0]
    return near.take(total_s.take(near).argsort(kind="stable")[:SHOWN])
