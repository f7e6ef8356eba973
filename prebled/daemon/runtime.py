"""The daemon's shell around the core: turns what happens into events and carries out the decisions.

It owns each accepted request from acceptance to its end: the stream to the client, the tokens sent so far, the run on
a worker. It decides nothing itself; where a request goes, whether it is refused and what a lost worker means is the
scheduler's word. Everything runs on one event loop; only tokenising leaves it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from prebled import __version__
from prebled.core.decisions import AbortRun, AnyDecision, Continue, Explanation, Place, Placed, Reject, WantSnapshot
from prebled.core.events import (
    AnyEvent,
    DrainStarted,
    FirstToken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestLost,
    SendFailed,
    StepsMeasured,
    TokensMade,
    WorkerDraining,
    WorkerLoad,
    WorkerLost,
    WorkerReady,
)
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, RunId, WorkerId
from prebled.daemon.deciding import Deciding
from prebled.daemon.gateway import GenerateInput, ModelInfo, RunSender
from prebled.daemon.inputs import check_input, request_id_or_new
from prebled.daemon.live_requests import LiveRequest, LiveRequests, sampling_of
from prebled.daemon.metrics_requests import RequestMeter, RequestTimes
from prebled.daemon.streams import RequestStream
from prebled.daemon.text import TextAssembler
from prebled.daemon.tokenizing import Tokenizing
from prebled.daemon.worker_table import WorkerTable
from prebled.errors import (
    Draining,
    InternalError,
    InvalidValue,
    ModelNotFound,
    NotFound,
    PrebledError,
    WorkerFailed,
    from_wire,
)
from prebled.messages import (
    Beat,
    Capacity,
    Chunk,
    DaemonStatus,
    Done,
    Failed,
    FinishReason,
)
from prebled.settings import LimitSettings

log = structlog.get_logger()

TOKENS_PER_EVENT = 16
"""Output tokens of a request between two `TokensMade` events: the load it states is needed by the tenth of a second,
not by the token."""


class Runtime:
    """Implements `gateway.Gateway` towards the doors and the fabric's listener towards the workers."""

    def __init__(
        self,
        scheduler: GlobalScheduler,
        tokenizing: Tokenizing,
        *,
        served_model_name: str,
        policy: str,
        limits: LimitSettings,
        daemon_epoch: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._tokenizing = tokenizing
        self._name = served_model_name
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._run_prefix = daemon_epoch.hex()
        self._next_run = 0
        self._sender: RunSender | None = None
        self._live = LiveRequests()
        self.deciding = Deciding(scheduler, self._perform, clock)
        self._handle = self.deciding.handle
        self._idle = asyncio.Event()
        self._idle.set()
        self._started_at = clock()
        self._created = int(time.time())
        self._draining = False
        self.counters: Counter[str] = Counter()
        self.requests = RequestMeter(clock)
        self.workers = WorkerTable()
        self.http_addresses: tuple[str, ...] = ()
        self.listen_addresses: tuple[str, ...] = ()

    def attach(self, sender: RunSender) -> None:
        """Connect the fabric; before the first request."""
        self._sender = sender

    # --- towards the doors ---

    async def generate(self, request: GenerateInput) -> RequestStream:
        """See `Gateway.generate`."""
        times = self.requests.arrived()
        try:
            return self._accept(request, await self._prompt(request), times)
        except PrebledError as error:
            self.requests.rejected(error)
            raise

    async def _prompt(self, request: GenerateInput) -> bytes:
        """The tokens of a request that is worth placing."""
        self._check_open()
        if request.model and request.model != self._name:
            message = f"the model {request.model!r} does not exist; served here: {self._name!r}"
            raise ModelNotFound(message, param="model")
        check_input(request, self._tokenizing.vocab_size)
        prompt = await self._tokenizing.encode(request, max_tokens=self.workers.max_total_tokens())
        if not prompt:
            raise InvalidValue("the prompt is empty: it has no tokens", param="prompt")
        self._check_open()
        return prompt

    def model(self) -> ModelInfo:
        """The served model."""
        return ModelInfo(self._name, self._created, self.workers.max_total_tokens())

    def status(self) -> DaemonStatus:
        """Everything `prebled status` shows."""
        waiting = sum(1 for live in self._live if not live.stream.sent_tokens)
        return DaemonStatus(
            ready=self.workers.any_ready() and not self._draining,
            draining=self._draining,
            model=self._name,
            policy=self._policy,
            pid=os.getpid(),
            version=__version__,
            uptime_s=round(self._clock() - self._started_at, 3),
            waiting=waiting,
            running=len(self._live) - waiting,
            workers=self.workers.statuses(),
            http=self.http_addresses,
            listen=self.listen_addresses,
            counters={**self.counters, **self.requests.counters()},
        )

    def explain(self, request_id: str) -> Explanation:
        """See `Gateway.explain`."""
        explanation = self._scheduler.explanation(RequestId(request_id))
        if explanation is None:
            raise NotFound(f"request {request_id!r}: unknown, or too long ago to be remembered", param="request_id")
        return explanation

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing new and wait for what is accepted; True if all of it ended in time."""
        self._draining = True
        self._handle(DrainStarted())
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def fail_all(self, error: PrebledError) -> None:
        """End every request with `error` (shutting down now)."""
        for live in self._live:
            live.stream.fail(error)
            self._closed(live)
        self.deciding.stop()

    def in_flight(self) -> int:
        """Requests accepted and not ended."""
        return len(self._live)

    def _check_open(self) -> None:
        if self._draining:
            message = "the daemon is draining and accepts no new requests"
            raise Draining(message, retry_after_s=self._limits.retry_after_s)

    def _accept(self, request: GenerateInput, prompt: bytes, times: RequestTimes) -> RequestStream:
        request_id = self._request_id(request.request_id)
        room = self.workers.max_total_tokens() - len(prompt) // 4
        sampling = sampling_of(request, max(room, 1), self._tokenizing.eos_token_ids)
        assembler = TextAssembler(self._tokenizing.decoder(), request.stop)
        stream = RequestStream(
            request_id,
            assembler,
            stream_tokens=self._limits.stream_tokens,
            on_close=lambda: self._closed(live),
        )
        live = LiveRequest(request_id, prompt, sampling, request.cache_salt, stream, times)
        self._live.add(live)
        self._idle.clear()
        try:
            self._handle(self._arrival(live, continued=False))
        except BaseException:
            self._forget(request_id)  # our bug, and not to be waited for when draining
            raise
        if request_id not in self._live:
            raise live.refusal or InternalError("the request was neither accepted nor refused")
        self.requests.accepted()
        return stream

    def _request_id(self, wanted: str) -> RequestId:
        request_id = RequestId(request_id_or_new(wanted))
        if request_id in self._live or self._scheduler.decision(request_id) is not None:
            return RequestId(request_id_or_new(""))  # one id, one request: `explain` remembers
        return request_id

    def _arrival(self, live: LiveRequest, *, continued: bool) -> RequestArrived:
        return RequestArrived(
            request_id=live.request_id,
            tokens=live.tokens(),
            max_tokens=live.remaining_tokens(),
            model=self._name,
            cache_salt=live.salt,
            continued=continued,
        )

    def _closed(self, live: LiveRequest) -> None:
        """The stream was given up, by its reader or for it. A stream that had ended by itself is no longer live."""
        if self._live.get(live.request_id) is live:
            self.requests.failed(live.stream.error)
            self._handle(RequestCancelled(live.request_id))
            self._forget(live.request_id)

    # --- towards the workers: the fabric's listener ---

    def worker_started(self, worker_id: WorkerId, pid: int, restarts: int) -> None:
        """The supervisor started a worker, or found one; it has yet to dial in."""
        self.workers.expected(worker_id, pid, restarts)

    def worker_known(self, worker_id: WorkerId, epoch: Epoch, pid: int, engine: str) -> None:
        """See FabricListener; so are those below."""
        self.workers.known(worker_id, epoch, pid, engine)

    def worker_loading(self, worker_id: WorkerId, detail: str) -> None:
        self.workers.loading(worker_id, detail)

    def worker_ready(self, worker_id: WorkerId, epoch: Epoch, capacity: Capacity) -> None:
        self.workers.ready(worker_id, capacity)
        self._handle(WorkerReady(worker_id, epoch, capacity))

    def worker_beat(self, worker_id: WorkerId, beat: Beat) -> None:
        was = self.workers.state(worker_id)
        self.workers.beat(worker_id, beat)
        if beat.phase == "draining" and was == "ready":
            self._handle(WorkerDraining(worker_id))
        if beat.phase in {"ready", "draining"}:
            self._handle(WorkerLoad(worker_id, beat.queued, beat.running, beat.kv_used_tokens))
            if beat.steps:
                self._handle(StepsMeasured(worker_id, beat.steps, beat.steps_left_out))

    def worker_lost(self, worker_id: WorkerId, reason: str) -> None:
        self.workers.lost(worker_id, reason)
        self.counters["workers_lost"] += 1
        self._handle(WorkerLost(worker_id))

    def run_chunk(self, worker_id: WorkerId, chunk: Chunk) -> None:
        live = self._live.of_run(chunk.run_id)
        if live is None:
            return
        if live.run_tokens == 0:
            if live.cached_tokens < 0:
                live.cached_tokens = max(chunk.cached_tokens, 0)
                self.requests.prompt_computed(len(live.prompt) // 4, live.cached_tokens)
            self._handle(FirstToken(live.request_id, max(chunk.cached_tokens, 0)))
        before = live.run_tokens
        live.run_tokens += len(chunk.tokens)
        self.requests.chunk(live.times, len(chunk.tokens))
        stopped = live.stream.push(chunk.tokens)
        if self._live.get(live.request_id) is not live:
            return  # the push found the reader too slow and ended the request
        if stopped:
            self._finish(live, "stop", RequestCancelled(live.request_id))
        elif before // TOKENS_PER_EVENT != live.run_tokens // TOKENS_PER_EVENT:
            self._handle(TokensMade(live.request_id, live.run_tokens))

    def run_done(self, worker_id: WorkerId, done: Done) -> None:
        live = self._live.of_run(done.run_id)
        if live is None:
            return
        if done.reason == "abort":  # nobody here asked for it: the worker gave the run up
            self._handle(RequestLost(live.request_id))
            return
        if live.cached_tokens < 0:
            live.cached_tokens = done.cached_tokens
        self._live.end_run(live)
        self._finish(live, done.reason, RequestFinished(live.request_id, done.output_tokens))

    def run_failed(self, worker_id: WorkerId, failed: Failed) -> None:
        live = self._live.of_run(failed.run_id)
        if live is None:
            return
        log.warning("run failed", request_id=live.request_id, worker=worker_id, code=failed.code, error=failed.message)
        if failed.retryable:
            self._handle(RequestLost(live.request_id))
            return
        self._live.end_run(live)
        self._fail(live, from_wire(failed.code, failed.message))
        self._handle(RequestFinished(live.request_id, live.run_tokens, failed=True))
        self._forget(live.request_id)

    def run_lost(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        for run_id in run_ids:
            live = self._live.of_run(run_id)
            if live is not None:
                self.counters["runs_lost"] += 1
                self._handle(RequestLost(live.request_id))

    # --- decisions ---

    def _perform(self, decision: AnyDecision) -> None:
        match decision:
            case Place(request_id, placement):
                self._place(request_id, placement)
            case Continue(request_id):
                self._continue(request_id)
            case AbortRun(request_id, worker_id):
                run_id = self._live.take_placed(request_id)
                if run_id is not None and self._sender is not None:
                    self._sender.abort_nowait(worker_id, [run_id])
            case WantSnapshot(worker_id) if self._sender is not None:
                self._sender.ask_snapshot(worker_id)
            case Reject(request_id, code, message, retry_after_s):
                self._refuse(request_id, from_wire(code, message, retry_after_s=retry_after_s))

    def _place(self, request_id: RequestId, placement: Placed) -> None:
        live, worker_id = self._live.get(request_id), placement.worker_id
        if live is None or self._sender is None:
            self._handle(RequestCancelled(request_id))
            return
        self._next_run += 1
        run_id = RunId(f"{self._run_prefix}-{self._next_run}")
        if self._sender.submit_nowait(worker_id, live.submit(run_id)):
            self._live.start_run(live, run_id)
            self.requests.placed(live.times, placement)
        else:
            self._handle(SendFailed(request_id, worker_id))

    def _continue(self, request_id: RequestId) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        self._live.end_run(live)
        complete = live.complete_reason(self._tokenizing.eos_token_ids)
        if complete is not None:
            self._finish(live, complete, None)
        elif live.runs >= self._limits.max_runs:
            self._fail(live, WorkerFailed(f"lost with its worker {live.runs} times; not tried again"))
            self._forget(request_id)
        else:
            self.requests.continued()
            log.info("request continues", request_id=request_id, sent_tokens=len(live.stream.sent_tokens))
            self._handle(self._arrival(live, continued=True))

    def _refuse(self, request_id: RequestId, error: PrebledError) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        live.refusal = error
        if live.runs:  # it was accepted, and cannot be continued
            self._fail(live, error)
        self._forget(request_id)

    def _finish(self, live: LiveRequest, reason: FinishReason, event: AnyEvent | None) -> None:
        """End a request well. `event` tells the scheduler; None where it asked for this end itself."""
        usage = live.usage()
        self.requests.finished(live.times, reason, usage.completion_tokens)
        live.stream.finish(reason, usage)
        if event is not None:
            self._handle(event)
        self._forget(live.request_id)

    def _fail(self, live: LiveRequest, error: PrebledError) -> None:
        self.requests.failed(error)
        live.stream.fail(error)

    def _forget(self, request_id: RequestId) -> None:
        self._live.remove(request_id)
        if not len(self._live):
            self._idle.set()
