"""One replay: the heap of what is due, and the schedulers and workers that carry it out (see `bench.replay`).

At one time cache reports come first, then beats, arrivals and ends of steps, each in the order in which they became
due: a request that comes when a step ends can join the next one.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from time import perf_counter_ns
from typing import final

import msgspec

from prebled.bench.replay_limits import Limits, LimitWatch
from prebled.bench.replay_profiles import Profile
from prebled.bench.replay_report import (
    DIGITS,
    DecisionCount,
    ReplayResult,
    Report,
    decide_times,
    spread,
)
from prebled.bench.replay_request import ReplayRequest
from prebled.bench.replay_worker import ReplayWorker
from prebled.bench.trace import Trace
from prebled.core.decisions import AbortRun, AnyDecision, Continue, Place, Reject, WantSnapshot
from prebled.core.events import AnyEvent, KvReported, KvSnapshotTaken, WorkerLoad, WorkerReady
from prebled.core.local_scheduler import LocalScheduler
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity
from prebled.settings import CoreSettings, FabricSettings, SimSettings
from prebled.worker.sim_batch import SimBatch

REPORT, BEAT, ARRIVAL, STEP = range(4)
"""What can be due; at one time in this order."""

Progress = Callable[[int], None]
"""Hears how many requests have ended so far."""

ENDS_PER_PROGRESS = 64


class ReplaySettings(msgspec.Struct, frozen=True):
    """What a replay may vary besides its arguments. `kv_delay_s`: from a change of a worker's cache until the global
    scheduler hears of it, with all that changed meanwhile; None: it never does. `queue_policy`: `groups` or `fcfs`.
    `is_length_known`: False: engines guess how long outputs become, as for requests that may end by themselves, and
    retract runs when they were wrong. `jumps`: False makes every step by itself, for comparison. `limits`: a load that
    is beyond them is not replayed to its end."""

    core: CoreSettings = CoreSettings()
    chunk_tokens: int = SimSettings().chunk_tokens
    mixed_chunks: bool = SimSettings().mixed_chunks
    max_running: int = SimSettings().max_running
    queue_policy: str = "groups"
    kv_delay_s: float | None = 0.05
    beat_s: float = FabricSettings().beat_s
    is_length_known: bool = True
    jumps: bool = True
    limits: Limits | None = None


@final
class Replay:
    """One replay: the heap of what is due, and who carries it out."""

    def __init__(
        self,
        trace: Trace,
        policy: str,
        workers: int,
        profile: Profile,
        kv_tokens: int,
        rate_scale: float,
        settings: ReplaySettings,
        progress: Progress | None,
    ) -> None:
        self._trace = trace
        self._requests = trace.requests
        self._policy = policy
        self._profile = profile
        self._rate_scale = rate_scale
        self._settings = settings
        self._progress = progress
        self._now = 0.0
        self._due: list[tuple[float, int, int, int]] = []  # a heap of (time, kind, order, request or worker)
        self._pushes = 0
        self._scheduler = GlobalScheduler(
            make_policy(policy, settings.core),
            settings.core,
            block_tokens=trace.block_tokens,
            max_waiting=len(trace.requests) + 1,
            retry_after_s=0.0,
            cost=profile.cost,
        )
        self._workers = [self._worker(number, kv_tokens) for number in range(workers)]
        self._numbers = {worker.worker_id: number for number, worker in enumerate(self._workers)}
        for worker in self._workers:
            self._scheduler.handle(WorkerReady(worker.worker_id, Epoch(1), worker.capacity), 0.0)
        self._is_beating = False
        self._is_known_idle = [True] * workers
        self._is_report_due = [False] * workers
        self._wants_snapshot = [False] * workers
        self._step_due = [-1.0] * workers  # a step in the heap for another time is out of date
        self._live: dict[RequestId, ReplayRequest] = {}
        self._ended: list[ReplayRequest] = []  # refused ones included, in the order of their ends
        self._failures: Counter[str] = Counter()
        self._counts = DecisionCount()
        self._decide_ns = array("q")
        self._watch = LimitWatch(settings.limits, len(trace.requests), self._live) if settings.limits else None
        self._turns: dict[str, deque[int]] = {}  # closed loop: of each session, those still to come

    # --- time ---

    def run(self) -> None:
        """Until every request has ended. Raises BeyondLimits as soon as the load is known to be."""
        self._set_arrivals()
        due, ended, total = self._due, self._ended, len(self._requests)
        while len(ended) < total:
            self._now, kind, _, number = heappop(due)
            if kind == STEP:
                self._take_step(number)
            elif kind == ARRIVAL:
                self._arrive(number)
            elif kind == REPORT:
                self._report(number)
            else:
                self._beat()

    def _push(self, time: float, kind: int, number: int) -> None:
        self._pushes += 1
        heappush(self._due, (time, kind, self._pushes, number))

    def _set_arrivals(self) -> None:
        if not self._trace.is_closed_loop:
            self._push(self._requests[0].arrival_s / self._rate_scale, ARRIVAL, 0)
            return
        for number, request in enumerate(self._requests):
            self._turns.setdefault(request.session, deque()).append(number)
        for turns in self._turns.values():
            first = turns.popleft()
            self._push(self._requests[first].arrival_s / self._rate_scale, ARRIVAL, first)

    # --- requests ---

    def _arrive(self, number: int) -> None:
        following = number + 1
        if not self._trace.is_closed_loop and following < len(self._requests):
            self._push(self._requests[following].arrival_s / self._rate_scale, ARRIVAL, following)
        request = ReplayRequest(number, self._requests[number], self._now)
        self._live[request.request_id] = request
        if self._watch is not None:
            self._watch.arrived(self._now)
        event = request.arrival()
        before = perf_counter_ns()
        decisions = self._scheduler.handle(event, self._now)
        self._decide_ns.append(perf_counter_ns() - before)
        self._perform(decisions)

    def _tell(self, event: AnyEvent) -> None:
        decisions = self._scheduler.handle(event, self._now)
        if decisions:
            self._perform(decisions)

    def _perform(self, decisions: list[AnyDecision]) -> None:
        for decision in decisions:
            match decision:
                case Place(request_id, placement):
                    self._counts.add(placement)
                    number = self._numbers[placement.worker_id]
                    run = self._live[request_id].start_run(number, is_length_known=self._settings.is_length_known)
                    self._workers[number].submit(run, self._now)
                    self._expect_step(number)
                case Reject(request_id, code):
                    self._failures[code] += 1
                    self._end(self._live[request_id])
                case AbortRun(request_id):
                    self._abort(self._live[request_id])
                case Continue(request_id):
                    self._tell(self._live[request_id].arrival())
                case WantSnapshot(worker_id):
                    self._wants_snapshot[self._numbers[worker_id]] = True
                    self._expect_report(self._numbers[worker_id])

    def _abort(self, request: ReplayRequest) -> None:
        worker, run = self._workers[request.worker], request.run
        assert run is not None
        worker.abort(run, self._now)
        self._expect_step(request.worker)
        request.lose_run(worker.batch.decodes.output_tokens(run), self._trace.block_tokens)

    def _end(self, request: ReplayRequest) -> None:
        del self._live[request.request_id]
        self._ended.append(request)
        if self._watch is not None:
            self._watch.ended(request, self._now)
        turns = self._turns.get(request.trace.session)
        if turns:
            following = turns.popleft()
            self._push(self._now + self._requests[following].think_s, ARRIVAL, following)
        if self._progress is not None and len(self._ended) % ENDS_PER_PROGRESS == 0:
            self._progress(len(self._ended))

    # --- workers ---

    def _worker(self, number: int, kv_tokens: int) -> ReplayWorker:
        settings, block_tokens = self._settings, self._trace.block_tokens
        kv_blocks = kv_tokens // block_tokens
        most = kv_blocks * block_tokens
        worker_id = WorkerId(f"w{number}")
        capacity = Capacity(
            self._profile.name, "sim", "sim", block_tokens, most, most - 1, most, 0, settings.max_running
        )
        batch = SimBatch(
            kv_blocks=kv_blocks,
            block_tokens=block_tokens,
            chunk_tokens=settings.chunk_tokens,
            max_running=settings.max_running,
            queue=LocalScheduler() if settings.queue_policy == "groups" else None,
            mixed_chunks=settings.mixed_chunks,
            tells_changes=settings.kv_delay_s is not None,
        )
        return ReplayWorker(worker_id, batch, self._profile.cost, capacity, self._tell, jumps=settings.jumps)

    def _expect_step(self, number: int) -> None:
        ends_at = self._workers[number].step_ends_at
        if ends_at is not None and ends_at != self._step_due[number]:
            self._step_due[number] = ends_at
            self._push(ends_at, STEP, number)
            if not self._is_beating:
                self._expect_beat()

    def _take_step(self, number: int) -> None:
        if self._step_due[number] != self._now:
            return  # steps that were cut short since
        self._step_due[number] = -1.0
        worker = self._workers[number]
        through = worker.take_step(self._now)
        self._expect_step(number)
        if worker.has_changes:
            self._expect_report(number)
        for request in through:
            self._end(request)

    def _expect_report(self, number: int) -> None:
        if not self._is_report_due[number]:
            self._is_report_due[number] = True
            self._push(self._now + (self._settings.kv_delay_s or 0.0), REPORT, number)

    def _report(self, number: int) -> None:
        self._is_report_due[number] = False
        worker = self._workers[number]
        changes = worker.take_changes()
        if self._wants_snapshot[number]:
            self._wants_snapshot[number] = False
            self._tell(KvSnapshotTaken(worker.worker_id, tuple(worker.batch.cache.held())))
        else:
            self._tell(KvReported(worker.worker_id, changes))

    def _beat(self) -> None:
        """Every worker's, but of those that have nothing to do and have said so: they would change nothing."""
        for number, worker in enumerate(self._workers):
            is_idle = worker.step_ends_at is None
            if not (is_idle and self._is_known_idle[number]):
                self._is_known_idle[number] = is_idle
                load = worker.load(self._now)
                self._tell(WorkerLoad(worker.worker_id, load.queued, load.running, load.kv_used_tokens))
        self._is_beating = not all(self._is_known_idle)
        if self._is_beating:
            self._expect_beat()

    def _expect_beat(self) -> None:
        beat_s = self._settings.beat_s
        self._is_beating = True
        self._push((self._now // beat_s + 1) * beat_s, BEAT, 0)

    # --- the result ---

    def result(self, wall_seconds: float) -> ReplayResult:
        """After `run`."""
        completed = [request for request in self._ended if request.finished_at >= 0]
        completed.sort(key=lambda request: request.number)
        ttft_s = [request.ttft_s(self._now) for request in completed]
        e2e_s = [request.finished_at - request.arrived_at for request in completed]
        queue_s = [request.started_at - request.arrived_at for request in completed]
        tpot_s = [request.tpot_s(self._now) for request in completed if request.trace.output_tokens > 1]
        prompt_tokens = sum(request.trace.prompt_tokens for request in completed)
        cached_tokens = sum(request.cached_tokens for request in completed)
        prefilled = [worker.prefilled_tokens for worker in self._workers]
        report = Report(
            trace=self._trace.name,
            policy=self._policy,
            workers=len(self._workers),
            profile=self._profile.name,
            rate_scale=self._rate_scale,
            requests=len(self._requests),
            completed=len(completed),
            failed=len(self._requests) - len(completed),
            sim_seconds=round(self._now, DIGITS),
            wall_seconds=wall_seconds,
            ttft_s=spread(ttft_s),
            tpot_s=spread(tpot_s),
            e2e_s=spread(e2e_s),
            queue_s=spread(queue_s),
            hit_ratio=round(cached_tokens / prompt_tokens, DIGITS) if prompt_tokens else 0.0,
            uncached_max_over_mean=_max_over_mean(prefilled),
            decisions=self._counts.total(),
            decide_us=decide_times(self._decide_ns),
        )
        retractions = sum(worker.batch.retractions for worker in self._workers)
        return ReplayResult(
            report,
            ttft_s,
            tpot_s,
            e2e_s,
            queue_s,
            dict(self._failures),
            retractions,
            [request.cached_tokens for request in completed],
            [request.worker for request in completed],
            [worker.busy_s for worker in self._workers],
        )


def _max_over_mean(counts: list[int]) -> float:
    return round(max(counts) * len(counts) / sum(counts), DIGITS) if any(counts) else 1.0
