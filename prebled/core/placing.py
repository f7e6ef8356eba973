"""Placing one request: match its prefix, let the policy choose, book, and keep the reason.

It owns the prefix tree, the loads and the policy; which workers may be chosen, and what a request goes through, is the
scheduler's. Every booking is one on the tree and one on the loads, made here and ended here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from prebled.core.blocks import cacheable_blocks, hash_path, namespace_seed
from prebled.core.cost import CostModel
from prebled.core.cost_fit import CostFit
from prebled.core.decisions import Cause, Placed
from prebled.core.events import RequestArrived
from prebled.core.load import Loads
from prebled.core.prediction import Predictions
from prebled.core.prefix_tree import PrefixTree
from prebled.core.reasons import weighed
from prebled.core.requests import Request
from prebled.core.sharing import Sharing
from prebled.core.sight import Memory, Policy, Sight
from prebled.core.workers import Candidates, Worker
from prebled.messages import KvChange, KvStored, StepSample

EXPIRED_PER_STEP = 32
"""Requests that may leave the history window in one step, so that the first event after a pause is not a slow one."""


class Placer:
    """See the module. `cost`: the model of every worker until `set_cost` gives it its own."""

    def __init__(self, policy: Policy, tree: PrefixTree, cost: CostModel, *, block_tokens: int) -> None:
        self.tree = tree
        self.loads = Loads(cost)
        self._policy = policy
        self._memory = policy if isinstance(policy, Memory) else None
        self._sharing = Sharing()
        self._predictions = Predictions(block_tokens)
        self._block_tokens = block_tokens
        self._slot_count = 0
        self._cost = cost
        self._cost_fits: dict[int, CostFit] = {}  # of the workers that have reported steps, by slot

    def add_worker(self, worker: Worker) -> None:
        """A worker that starts empty and idle."""
        self._slot_count = max(self._slot_count, worker.slot + 1)
        self.loads.reset(worker.slot)
        self.resize_worker(worker)

    def resize_worker(self, worker: Worker) -> None:
        """Its capacity is known, or has changed."""
        self.tree.set_capacity(worker.slot, worker.capacity.kv_tokens // self._block_tokens)

    def forget_worker(self, worker: Worker) -> None:
        """Its cache is gone. Its requests have been released before."""
        self.tree.forget_worker(worker.slot)
        self.loads.reset(worker.slot)
        self._cost_fits.pop(worker.slot, None)
        if self._memory is not None:
            self._memory.forgot(worker.slot)

    def cost(self, slot: int) -> CostModel:
        """What work costs the worker there."""
        return self.loads.cost(slot)

    def set_cost(self, slot: int, cost: CostModel) -> None:
        """What work costs the worker there from now on. It does not change what is booked already; a worker that begins
        anew in this slot is given the model of all again."""
        self.loads.set_cost(slot, cost)

    def cost_fit(self, slot: int) -> CostFit | None:
        """The fit to the steps of the worker there; None until it has reported one."""
        return self._cost_fits.get(slot)

    def advance(self, now: float) -> None:
        """Time has passed."""
        self.tree.advance(now, EXPIRED_PER_STEP)
        self.loads.advance(now)

    def request(self, event: RequestArrived) -> Request:
        """The request of this event, its prompt hashed."""
        path, prompt_tokens = event.path, event.prompt_tokens
        if event.tokens:
            seed = namespace_seed(event.model, event.lora, event.cache_salt)
            path, prompt_tokens = hash_path(event.tokens, self._block_tokens, seed), len(event.tokens) // 4
        return Request(event.request_id, path, prompt_tokens, event.max_tokens, event.continued)

    def place(self, request: Request, candidates: Candidates, now: float) -> Placed:
        """Choose one of the candidates (at least one) and book the request there."""
        prompt_tokens, hashes, slots, ids = request.prompt_tokens, request.hashes, candidates.slots, candidates.ids
        tree, loads, sharing, block_tokens = self.tree, self.loads, self._sharing, self._block_tokens
        match = tree.match(hashes)
        most_blocks = cacheable_blocks(prompt_tokens, block_tokens)
        cached_tokens, rows = match.held_tokens(self._slot_count, block_tokens, most_blocks), loads.rows
        if len(ids) != self._slot_count:
            cached_tokens, rows = cached_tokens[slots], list(loads.table.take(slots, axis=1))
        sight = Sight(prompt_tokens, cached_tokens, rows, loads, now, ids, slots, hashes, block_tokens, sharing, tree)
        policy = self._policy
        choice = policy.choose(sight)
        chosen = choice.chosen
        worker, matched_tokens = candidates.workers[chosen], int(cached_tokens.item(chosen))
        missed_tokens, slot = prompt_tokens - matched_tokens, worker.slot
        request.worker = worker
        request.visit = tree.book(match, slot, now)
        request.work = work = loads.book(slot, prompt_tokens, missed_tokens, request.max_tokens)
        work.sharing = sharing.book(slot, hashes)
        if self._memory is not None:
            self._memory.booked(sight, choice, work)
        worker.requests[request.request_id] = request
        return Placed(
            worker.worker_id,
            choice.mode,
            policy.name,
            matched_tokens,
            missed_tokens,
            weighed(ids, cached_tokens, choice),
            choice.adjusted,
        )

    def kv_reported(self, worker: Worker, changes: Sequence[KvChange], now: float) -> bool:
        """The worker's cache has changed, in this order. True: it should be asked for a snapshot."""
        return self.tree.report(worker.slot, changes, now)

    def kv_snapshot_taken(self, worker: Worker, runs: Sequence[KvStored], now: float) -> bool:
        """All that the worker's cache holds, parents before children. True: it should be asked for another one."""
        return self.tree.replace(worker.slot, runs, now)

    def steps_measured(self, worker: Worker, samples: Sequence[StepSample]) -> None:
        """Steps that the worker's engine took: what its work costs is fitted to them, in this life of the worker; the
        next one may be on another machine, and measures itself when it starts."""
        fit = self._cost_fits.get(worker.slot)
        if fit is None:
            fit = self._cost_fits[worker.slot] = CostFit(self._cost)
        if any([fit.add(sample) for sample in samples]):
            self.set_cost(worker.slot, fit.priced())

    def start(self, request: Request, cached_tokens: int, now: float) -> None:
        """The first token of a placed request came. `cached_tokens`: what its engine took from the cache."""
        work = request.work
        assert work is not None
        predicted_tokens = request.prompt_tokens - work.uncached_tokens
        self._predictions.compare(predicted_tokens, cached_tokens)
        if predicted_tokens != cached_tokens:
            request.mispredicted_tokens = predicted_tokens - cached_tokens
        self.loads.first_token(work)
        if self._memory is not None:
            self._memory.started(work, now)

    def finish(self, request: Request, output_tokens: int) -> None:
        """A request ended by itself after so many tokens; its release follows."""
        self.loads.learn_output(output_tokens)
        if self._memory is not None and request.work is not None:
            self._memory.finished(request.work, output_tokens)

    def release(self, request: Request, *, is_computed: bool) -> Cause | None:
        """End the booking of a placed request. `is_computed`: its prompt is, or may be, in the worker's cache. Answers
        why its cached tokens were not as predicted; None: they were, or there was no first token."""
        worker, work, visit = request.worker, request.work, request.visit
        assert worker is not None
        assert work is not None
        assert visit is not None
        del worker.requests[request.request_id]
        self.loads.release(work)
        self._sharing.release(work.slot, work.sharing)
        if self._memory is not None:
            self._memory.released(work, is_computed=is_computed)
        tree, found, cause = self.tree, visit.found, None
        if is_computed:
            tree.release(visit)
        else:
            tree.withdraw(visit)
        if request.mispredicted_tokens:
            predicted_tokens = request.prompt_tokens - work.uncached_tokens
            cached_tokens = predicted_tokens - request.mispredicted_tokens
            cause = self._predictions.settle(visit, found, predicted_tokens, cached_tokens)
            request.mispredicted_tokens = 0
        request.worker = request.work = request.visit = None
        return cause

    def counters(self) -> dict[str, int]:
        """What came of predictions and of the workers' reports, as `SchedulerStatistics` has it; none that are 0."""
        reports = msgspec.structs.asdict(self.tree.report_statistics())
        counters = {**self._predictions.counters(), **{f"kv_{name}": count for name, count in reports.items()}}
        return {name: count for name, count in counters.items() if count}
