"""The runs of the present daemon on this worker's engine: takes batches in, gives frames and ends out.

Rule kept here: what a run brought after it was dropped, or for a daemon that is gone, goes nowhere; run ids never
repeat, so whoever is not in `_runs` is not known. A run's tokens are published before its end is told, and so is what
the cache did until then; before its first tokens, what the cache did to make room. A daemon is first told all that the
cache holds, and from then on what changes. It knows the engine and the messages, but neither sockets nor the courtship
with the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from prebled.core.types import Epoch, RunId
from prebled.errors import Draining, PrebledError, Saturated, Unavailable
from prebled.messages import (
    Capacity,
    Done,
    Failed,
    Frame,
    FromWorker,
    KvChange,
    KvChanged,
    KvSnapshot,
    KvStored,
    Replayed,
    StepSample,
    Submit,
    Tokens,
    encode,
)
from prebled.settings import FabricSettings
from prebled.worker.engine import Engine, EngineLoad, EngineStep, RunDone, RunFailed
from prebled.worker.kv_batch import KvBatch, parts
from prebled.worker.ring import FrameRing
from prebled.worker.step_log import StepLog
from prebled.worker.validate import check_submit

log = structlog.get_logger()

MOST_RUNS = 8192
"""Runs at hand, waiting ones included. Full: further ones are refused, another worker may take them."""

REPLAY_BYTES = 4 * 1024 * 1024 - 4096
"""Frames in one answer to a Replay; the daemon asks again for the rest."""

SNAPSHOT_BYTES = 1024 * 1024
"""One part of a snapshot, at most."""

KV_BYTES = 32 * 1024
"""One frame of changes, at most: 4,096 blocks that go one by one, which cost the daemon some milliseconds at once."""


class RunService:
    """`say` sends a control message and `publish` a frame to the present daemon; both may be called from any method."""

    def __init__(
        self,
        engine: Engine,
        epoch: Epoch,
        settings: FabricSettings,
        say: Callable[[FromWorker], None],
        publish: Callable[[bytes], None],
    ) -> None:
        self._engine = engine
        self._epoch = epoch
        self._say = say
        self._publish = publish
        self._ring = FrameRing(settings.ring_frames, settings.ring_bytes)
        self._runs: set[RunId] = set()
        self._steps = StepLog()
        self._kv = KvBatch()
        self._kv_wait_s = settings.kv_batch_s
        self._kv_timer: asyncio.TimerHandle | None = None
        self.capacity: Capacity | None = None  # None until the engine is loaded
        self.is_open = False  # whether the present daemon has been told that we are ready
        self.is_draining = False

    @property
    def next_seq(self) -> int:
        """The number of the next frame."""
        return self._ring.next_seq

    @property
    def runs(self) -> int:
        """Runs of the present daemon that have not ended."""
        return len(self._runs)

    def load(self) -> EngineLoad:
        """The engine's, dropped runs that it has not ended yet included."""
        return self._engine.load() if self.capacity is not None else EngineLoad(0, 0, 0)

    def take_steps(self) -> tuple[tuple[StepSample, ...], int]:
        """For a beat: the newest steps since the last one, and how many more there were. Kept until a daemon has been
        told that we are ready."""
        return self._steps.take() if self.is_open else ((), 0)

    def take_batch(self, submits: Sequence[Submit]) -> None:
        """Start these runs; a run that cannot be is told Failed. Raises EngineFailed."""
        accepted = []
        for submit in submits:
            if submit.run_id in self._runs:
                log.warning("a run was submitted twice", run=submit.run_id)
                continue
            error = self._why_not(submit)
            if error is None:
                self._runs.add(submit.run_id)
                accepted.append(submit)
            else:
                self._fail(submit.run_id, error)
        if accepted:
            self._engine.submit_nowait(accepted)

    def abort(self, run_ids: Sequence[RunId]) -> None:
        """End these runs; each tells its end by itself. Unknown ids are ignored. Raises EngineFailed."""
        known = [run_id for run_id in run_ids if run_id in self._runs]
        if known:
            self._engine.abort_nowait(known)

    def drop_all(self) -> None:
        """The daemon is gone: end all runs, and nothing of them is told to anyone. Raises EngineFailed."""
        orphans = list(self._runs)
        self.is_open = False  # a batch still on its way from that daemon is nobody's
        self._runs.clear()
        self._ring.clear()
        self._steps.tell_again()
        self._forget_kv()
        if orphans:
            log.warning("runs aborted", runs=len(orphans))
            self._engine.abort_nowait(orphans)

    def take_step(self, step: EngineStep) -> None:
        """Pass on what the engine brought: one frame with all tokens, then the ends. Changes of the cache go before
        them if a run begins or ends, otherwise when they have waited for others."""
        chunks = tuple(chunk for chunk in step.chunks if chunk.run_id in self._runs)
        all_ends: tuple[RunDone | RunFailed, ...] = (*step.done, *step.failed)
        ends = [end for end in all_ends if end.run_id in self._runs]
        self._steps.add(step.samples)
        self._take_kv(step.kv)
        if ends or any(chunk.cached_tokens >= 0 for chunk in chunks):
            self._flush_kv()
        if chunks:
            self._publish_frame(Tokens(self._epoch, self._ring.next_seq, chunks))
        for end in ends:
            if end.run_id in self._runs:
                self._runs.remove(end.run_id)
                self._say(self._told(end))

    def open(self) -> None:
        """The present daemon may be told of the cache, and will be told that we are ready."""
        self.is_open = True
        self.say_snapshot()

    def set_namespace(self, model: str) -> None:
        """The daemon to come serves the model under this name. Only while none is open."""
        self._engine.set_namespace(model)

    def say_snapshot(self) -> None:
        """Say all that the cache holds; nothing unless the present daemon knows that we are ready."""
        if not self.is_open:
            return
        self._flush_kv()
        last_seq = self._ring.next_seq - 1
        pieces: list[tuple[KvStored, ...]] = list(parts(self._engine.held(), SNAPSHOT_BYTES)) or [()]
        for number, runs in enumerate(pieces):
            self._say(KvSnapshot(self._epoch, last_seq, runs, number, number == len(pieces) - 1))

    def replay(self, first_seq: int, last_seq: int) -> None:
        """Say again what was published, as far as the ring has it."""
        begin, frames = self._ring.since(first_seq, last_seq, REPLAY_BYTES)
        self._say(Replayed(self._epoch, begin, tuple(frames)))

    def _publish_frame(self, frame: Frame) -> None:
        encoded = encode(frame)
        self._ring.add(encoded)
        self._publish(encoded)

    def _take_kv(self, changes: Sequence[KvChange]) -> None:
        if not changes or not self.is_open:
            return  # the snapshot for the next daemon will tell
        self._kv.add(changes)
        if self._kv_timer is None:
            self._kv_timer = asyncio.get_running_loop().call_later(self._kv_wait_s, self._flush_kv)

    def _flush_kv(self) -> None:
        for changes in parts(self._kv.take(), KV_BYTES):
            self._publish_frame(KvChanged(self._epoch, self._ring.next_seq, changes))
        self._forget_kv()

    def _forget_kv(self) -> None:
        self._kv.clear()
        if self._kv_timer is not None:
            self._kv_timer.cancel()
            self._kv_timer = None

    def _told(self, end: RunDone | RunFailed) -> Done | Failed:
        if isinstance(end, RunFailed):
            return Failed(self._epoch, end.run_id, end.code, end.message, end.retryable)
        last_seq = self._ring.next_seq - 1
        return Done(
            self._epoch, end.run_id, last_seq, end.reason, end.prompt_tokens, end.cached_tokens, end.output_tokens
        )

    def _why_not(self, submit: Submit) -> PrebledError | None:
        if self.capacity is None or not self.is_open:
            return Unavailable("the worker is not ready")
        if self.is_draining:
            return Draining("the worker takes no new runs")
        if len(self._runs) >= MOST_RUNS:
            return Saturated(f"the worker has {MOST_RUNS} runs already")
        return check_submit(submit, self.capacity)

    def _fail(self, run_id: RunId, error: PrebledError) -> None:
        retryable = isinstance(error, Unavailable | Saturated)
        self._say(Failed(self._epoch, run_id, error.code, error.message, retryable))
