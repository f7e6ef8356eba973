"""The runs of the present daemon on this worker's engine: takes batches in, gives frames and ends out.

Rule kept here: what a run brought after it was dropped, or for a daemon that is gone, goes nowhere; run ids never
repeat, so whoever is not in `_runs` is not known. A run's tokens are published before its end is told. It knows the
engine and the messages, but neither sockets nor the courtship with the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from prebled.core.types import Epoch, RunId
from prebled.errors import Draining, PrebledError, Saturated, Unavailable
from prebled.messages import Capacity, Done, Failed, FromWorker, Replayed, Submit, Tokens, encode
from prebled.settings import FabricSettings
from prebled.worker.engine import Engine, EngineLoad, EngineStep, RunDone, RunFailed
from prebled.worker.ring import FrameRing
from prebled.worker.validate import check_submit

log = structlog.get_logger()

MOST_RUNS = 8192
"""Runs at hand, waiting ones included. Full: further ones are refused, another worker may take them."""

REPLAY_BYTES = 4 * 1024 * 1024 - 4096
"""Frames in one answer to a Replay; the daemon asks again for the rest."""


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
        if orphans:
            log.warning("runs aborted", runs=len(orphans))
            self._engine.abort_nowait(orphans)

    def take_step(self, step: EngineStep) -> None:
        """Pass on what the engine brought: one frame with all tokens, then the ends."""
        chunks = tuple(chunk for chunk in step.chunks if chunk.run_id in self._runs)
        if chunks:
            frame = encode(Tokens(self._epoch, self._ring.next_seq, chunks))
            self._ring.add(frame)
            self._publish(frame)
        ends: tuple[RunDone | RunFailed, ...] = (*step.done, *step.failed)
        for end in ends:
            if end.run_id in self._runs:
                self._runs.remove(end.run_id)
                self._say(self._told(end))

    def replay(self, first_seq: int, last_seq: int) -> None:
        """Say again what was published, as far as the ring has it."""
        begin, frames = self._ring.since(first_seq, last_seq, REPLAY_BYTES)
        self._say(Replayed(self._epoch, begin, tuple(frames)))

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
