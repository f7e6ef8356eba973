"""The global scheduler: events in, decisions out (Preble, section 3).

`GlobalScheduler.handle` is the only way in and the only writer of global state. The same events at the same times give
the same decisions. It never waits, reads a clock or rolls dice; what takes time comes back as an event.

A request that was accepted and cannot be placed: a continued one is parked until a worker can take it or `park_s` has
passed; another is refused at once, since its client has seen nothing of it yet. The same holds when a placement could
not be sent: the request is placed anew among the other workers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from prebled.core.cost import PROFILES, CostModel
from prebled.core.decisions import (
    AbortRun,
    AnyDecision,
    Continue,
    Explanation,
    Place,
    Placed,
    Reject,
    RejectCode,
    WantSnapshot,
)
from prebled.core.events import (
    AnyEvent,
    DrainStarted,
    FirstToken,
    KvReported,
    KvSnapshotTaken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestLost,
    SendFailed,
    StepsMeasured,
    Tick,
    TokensMade,
    WorkerDraining,
    WorkerLoad,
    WorkerLost,
    WorkerReady,
)
from prebled.core.journal import Journal
from prebled.core.placing import Placer
from prebled.core.prefix_tree import PrefixTree, TreeStatistics
from prebled.core.requests import Request, RequestState
from prebled.core.sight import Policy
from prebled.core.statistics import SchedulerStatistics, WorkerStatistics
from prebled.core.types import RequestId
from prebled.core.workers import Candidates, Worker, Workers, WorkerState
from prebled.settings import CoreSettings


class GlobalScheduler:
    """See the module. `max_waiting`: most requests without a first token; past it new ones are refused and told to come
    back in `retry_after_s`. `cost`: the model of every worker."""

    def __init__(
        self,
        policy: Policy,
        settings: CoreSettings,
        *,
        block_tokens: int,
        max_waiting: int,
        retry_after_s: float,
        cost: CostModel = PROFILES["tiny-cpu"],
    ) -> None:
        tree = PrefixTree(max_blocks=settings.max_blocks, window_s=settings.window_s)
        self._placer = Placer(policy, tree, cost, block_tokens=block_tokens)
        self._workers = Workers(lambda slot: not tree.visits(slot))
        self._block_tokens = block_tokens
        self._max_waiting = max_waiting
        self._retry_after_s = retry_after_s
        self._park_s = settings.park_s
        self._requests: dict[RequestId, Request] = {}
        self._parked: OrderedDict[RequestId, Request] = OrderedDict()  # oldest first
        self._waiting = 0
        self._is_draining = False
        self._now = float("-inf")
        self._journal = Journal(settings.kept_decisions)
        self._counters: Counter[str] = Counter()
        self._handlers: dict[type, Callable[[Any], list[AnyDecision]]] = {
            RequestArrived: self._request_arrived,
            SendFailed: self._send_failed,
            FirstToken: self._first_token,
            TokensMade: self._tokens_made,
            RequestFinished: self._request_finished,
            RequestCancelled: self._request_cancelled,
            RequestLost: self._request_lost,
            WorkerReady: self._worker_ready,
            WorkerLoad: self._worker_load,
            KvReported: self._kv_told,
            KvSnapshotTaken: self._kv_told,
            StepsMeasured: self._steps_measured,
            WorkerDraining: self._worker_draining,
            WorkerLost: self._worker_lost,
            DrainStarted: self._drain_started,
            Tick: self._tick,
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyDecision]:
        """Take in what happened at `now` (seconds; a time before the last one counts as the last one) and say what is
        to be done, in this order. No event raises: one that makes no sense is counted and ignored."""
        if now < self._now:
            self._counters["clock_steps_back"] += 1
            now = self._now
        self._now = now
        self._placer.advance(now)
        return self._handlers[type(event)](event)

    def next_deadline(self) -> float | None:
        """When a `Tick` is wanted at the latest; None: nothing is due."""
        oldest = next(iter(self._parked.values()), None)
        return None if oldest is None else oldest.parked_at + self._park_s

    def decision(self, request_id: RequestId) -> Placed | Reject | None:
        """The newest placement or refusal of a request, if it is among the last `kept_decisions`."""
        return self._journal.decision(request_id)

    def explanation(self, request_id: RequestId) -> Explanation | None:
        """The same with what came of it."""
        return self._journal.explanation(request_id)

    def statistics(self) -> SchedulerStatistics:
        """For people, metrics and tests."""
        tree = self._placer.tree.statistics()
        return SchedulerStatistics(
            requests=len(self._requests),
            waiting=self._waiting,
            parked=len(self._parked),
            mean_output_tokens=self._placer.loads.mean_output_tokens,
            tree=tree,
            workers=tuple(self._worker_statistics(worker, tree) for worker in self._workers),
            counters={**self._counters, **self._placer.counters()},
        )

    # --- requests ---

    def _request_arrived(self, event: RequestArrived) -> list[AnyDecision]:
        if event.request_id in self._requests:
            return self._ignored(event)
        if not event.continued:
            if self._is_draining:
                return self._refuse(event.request_id, "draining", "the daemon is draining and accepts nothing new")
            if not self._workers.ready().workers:
                return self._refuse(event.request_id, "no_worker_ready", "no worker is ready")
        request = self._placer.request(event)
        candidates = self._workers.fitting(request)
        if not candidates.workers:
            if event.continued:
                return self._park(request)
            return self._refuse(request.request_id, "context_length_exceeded", self._too_long(request))
        if not event.continued and self._waiting >= self._max_waiting:
            message = f"{self._waiting} requests are waiting for their first token, {self._max_waiting} may"
            return self._refuse(request.request_id, "saturated", message)
        self._requests[request.request_id] = request
        return [self._place(request, candidates)]

    def _send_failed(self, event: SendFailed) -> list[AnyDecision]:
        request = self._requests.get(event.request_id)
        worker = request.worker if request is not None else None
        if request is None or worker is None or worker.worker_id != event.worker_id:
            return self._ignored(event)
        if request.state is not RequestState.PLACED:
            return self._ignored(event)
        self._counters["sends_failed"] += 1
        self._release(request, RequestState.ARRIVED, is_computed=False)
        request.avoided += (worker,)
        candidates = self._workers.fitting(request)
        if candidates.workers:
            return [self._place(request, candidates)]
        del self._requests[request.request_id]
        if request.is_continued:
            return self._park(request)
        message = f"the request could not be sent to worker {event.worker_id}, and no other can take it"
        return self._refuse(request.request_id, "no_worker_ready", message)

    def _first_token(self, event: FirstToken) -> list[AnyDecision]:
        request = self._requests.get(event.request_id)
        if request is None or request.work is None or request.state is not RequestState.PLACED:
            return self._ignored(event)
        self._waiting -= request.is_waiting
        request.move(RequestState.RUNNING)
        request.hashes = b""
        self._placer.start(request, event.cached_tokens, self._now)
        self._journal.started(request.request_id, event.cached_tokens)
        return []

    def _tokens_made(self, event: TokensMade) -> list[AnyDecision]:
        request = self._requests.get(event.request_id)
        if request is None or request.work is None:
            return self._ignored(event)
        self._placer.loads.tokens_made(request.work, event.output_tokens)
        return []

    def _request_finished(self, event: RequestFinished) -> list[AnyDecision]:
        request = self._requests.get(event.request_id)
        if request is None:
            return self._ignored(event)
        if not event.failed:
            self._placer.finish(request, event.output_tokens)
        self._end(request, is_computed=not event.failed or request.state is RequestState.RUNNING)
        return []

    def _request_cancelled(self, event: RequestCancelled) -> list[AnyDecision]:
        request = self._requests.get(event.request_id)
        if request is None:
            return self._ignored(event)
        worker = request.worker
        self._end(request, is_computed=request.state is RequestState.RUNNING)
        return [] if worker is None else [AbortRun(event.request_id, worker.worker_id)]

    def _request_lost(self, event: RequestLost) -> list[AnyDecision]:
        request = self._requests.get(event.request_id)
        worker = request.worker if request is not None else None
        if request is None or worker is None:
            return self._ignored(event)
        self._end(request, is_computed=True)
        return [AbortRun(event.request_id, worker.worker_id), Continue(event.request_id)]

    # --- workers ---

    def _worker_ready(self, event: WorkerReady) -> list[AnyDecision]:
        worker = self._workers.get(event.worker_id)
        decisions: list[AnyDecision] = []
        if worker is not None and worker.epoch != event.epoch:
            decisions += self._forget(worker)
            worker = None
        if worker is None:
            self._placer.add_worker(self._workers.add(event.worker_id, event.epoch, event.capacity))
        else:
            self._workers.update(worker, event.capacity)
            self._placer.resize_worker(worker)
        return decisions + self._unpark()

    def _worker_load(self, event: WorkerLoad) -> list[AnyDecision]:
        worker = self._workers.get(event.worker_id)
        if worker is None:
            return self._ignored(event)
        worker.queued, worker.running, worker.kv_used_tokens = event.queued, event.running, event.kv_used_tokens
        self._placer.loads.report(worker.slot, event.queued, event.running)
        return []

    def _kv_told(self, event: KvReported | KvSnapshotTaken) -> list[AnyDecision]:
        worker = self._workers.get(event.worker_id)
        if worker is None:
            return self._ignored(event)
        if isinstance(event, KvReported):
            is_wanted = self._placer.kv_reported(worker, event.changes, self._now)
        else:
            is_wanted = self._placer.kv_snapshot_taken(worker, event.runs, self._now)
        return [WantSnapshot(worker.worker_id)] if is_wanted else []

    def _steps_measured(self, event: StepsMeasured) -> list[AnyDecision]:
        worker = self._workers.get(event.worker_id)
        if worker is None:
            return self._ignored(event)
        if event.left_out:
            self._counters["steps_left_out"] += event.left_out
        self._placer.steps_measured(worker, event.samples)
        return []

    def _worker_draining(self, event: WorkerDraining) -> list[AnyDecision]:
        worker = self._workers.get(event.worker_id)
        if worker is None or worker.state is not WorkerState.READY:
            return self._ignored(event)
        self._workers.drain(worker)
        return []

    def _worker_lost(self, event: WorkerLost) -> list[AnyDecision]:
        worker = self._workers.get(event.worker_id)
        return self._ignored(event) if worker is None else self._forget(worker)

    # --- the daemon ---

    def _drain_started(self, event: DrainStarted) -> list[AnyDecision]:
        self._is_draining = True
        return []

    def _tick(self, event: Tick) -> list[AnyDecision]:
        decisions: list[AnyDecision] = []
        while (deadline := self.next_deadline()) is not None and deadline <= self._now:
            request = next(iter(self._parked.values()))
            self._end(request, is_computed=False)
            if self._workers.ready().workers:
                decisions += self._refuse(request.request_id, "context_length_exceeded", self._too_long(request))
            else:
                message = f"no worker became ready within {self._park_s:g} s to continue the request"
                decisions += self._refuse(request.request_id, "no_worker_ready", message)
        return decisions

    # --- inside ---

    def _place(self, request: Request, candidates: Candidates) -> Place:
        placement = self._placer.place(request, candidates, self._now)
        request.move(RequestState.PLACED)
        self._waiting += request.is_waiting
        self._counters[f"placed_{placement.mode}"] += 1
        self._journal.placed(request.request_id, placement)
        return Place(request.request_id, placement)

    def _park(self, request: Request) -> list[AnyDecision]:
        request.move(RequestState.PARKED)
        request.parked_at = self._now
        request.avoided = ()  # when a worker reports, those that could not be reached may be again
        self._requests[request.request_id] = self._parked[request.request_id] = request
        return []

    def _unpark(self) -> list[AnyDecision]:
        """Place what has waited for a worker, oldest first."""
        decisions: list[AnyDecision] = []
        for request in list(self._parked.values()):
            candidates = self._workers.fitting(request)
            if candidates.workers:
                del self._parked[request.request_id]
                decisions.append(self._place(request, candidates))
        return decisions

    def _release(self, request: Request, state: RequestState, *, is_computed: bool) -> None:
        """Take a placed request off its worker."""
        self._waiting -= request.is_waiting
        request.move(state)
        cause = self._placer.release(request, is_computed=is_computed)
        if cause is not None:
            self._journal.mispredicted(request.request_id, cause)

    def _end(self, request: Request, *, is_computed: bool) -> None:
        """Forget a request, wherever it stands."""
        del self._requests[request.request_id]
        if self._parked.pop(request.request_id, None) is None:
            self._release(request, RequestState.ENDED, is_computed=is_computed)
        else:
            request.move(RequestState.ENDED)

    def _forget(self, worker: Worker) -> list[AnyDecision]:
        requests = list(worker.requests.values())
        for request in requests:
            self._end(request, is_computed=False)
        self._workers.remove(worker)
        self._placer.forget_worker(worker)
        return [Continue(request.request_id) for request in requests]

    def _refuse(self, request_id: RequestId, code: RejectCode, message: str) -> list[AnyDecision]:
        """Every refusal but one for size may be tried again later."""
        retry_after_s = None if code == "context_length_exceeded" else self._retry_after_s
        reject = Reject(request_id, code, message, retry_after_s)
        self._counters[f"rejected_{code}"] += 1
        self._journal.refused(request_id, reject)
        return [reject]

    def _too_long(self, request: Request) -> str:
        capacities = [worker.capacity for worker in self._workers.ready().workers]
        return (
            f"the request has {request.prompt_tokens} prompt tokens and asks for up to {request.max_tokens} more, "
            f"{request.prompt_tokens + request.max_tokens} in all; workers take at most "
            f"{max(capacity.max_prompt_tokens for capacity in capacities)} prompt tokens and "
            f"{max(capacity.max_total_tokens for capacity in capacities)} in all"
        )

    def _ignored(self, event: AnyEvent) -> list[AnyDecision]:
        self._counters[f"ignored_{type(event).__name__}"] += 1
        return []

    def _worker_statistics(self, worker: Worker, tree: TreeStatistics) -> WorkerStatistics:
        fit = self._placer.cost_fit(worker.slot)
        return WorkerStatistics(
            worker_id=worker.worker_id,
            state=worker.state.value,
            requests=len(worker.requests),
            load_s=float(self._placer.loads.seconds[worker.slot]),
            held_tokens=tree.held_blocks[worker.slot] * self._block_tokens,
            cost=fit.present() if fit is not None else self._placer.cost(worker.slot),
            queued=worker.queued,
            running=worker.running,
            kv_used_tokens=worker.kv_used_tokens,
            steps=fit.samples if fit is not None else 0,
            steps_ignored=fit.ignored if fit is not None else 0,
            cost_error=fit.error if fit is not None else None,
        )

    def check_invariants(self) -> None:
        """AssertionError where sums or states do not agree. For tests."""
        self._placer.tree.check_invariants()
        requests = self._requests.values()
        assert self._waiting == sum(request.is_waiting for request in requests) <= self._max_waiting
        assert set(self._parked) == {one.request_id for one in requests if one.state is RequestState.PARKED}
        assert all(request.is_continued for request in self._parked.values())
        placed = {one.request_id for one in requests if one.state in {RequestState.PLACED, RequestState.RUNNING}}
        assert len(placed) + len(self._parked) == len(requests)
        assert placed == {name for worker in self._workers for name in worker.requests}
        for worker in self._workers:
            works = [request.work for request in worker.requests.values() if request.work is not None]
            assert len(works) == len(worker.requests)
            own_s = sum(work.prefill_s + work.decode_s for work in works)
            self._placer.loads.check_invariants(worker.slot, len(works), own_s)
