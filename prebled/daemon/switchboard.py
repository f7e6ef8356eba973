"""Passes on what the fabric and the supervisor tell to all who need it: the runtime, the supervisor, people.

It exists so that none of these three knows the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from prebled.core.blocks import HASH_BYTES
from prebled.core.events import KvReported, KvSnapshotTaken
from prebled.core.types import Epoch, RunId, WorkerId
from prebled.daemon.fabric import Fabric
from prebled.daemon.runtime import Runtime
from prebled.daemon.supervisor import Supervisor
from prebled.messages import Beat, Capacity, Chunk, Done, Failed, KvChange, KvStored

log = structlog.get_logger()


class Switchboard:
    """Implements `FabricListener` and `SupervisorListener`. `model`: the folder or name that workers must serve, too.
    `tell_progress` gets one line for people while a worker loads; `tell_ready` the id of a worker that serves."""

    def __init__(
        self,
        runtime: Runtime,
        model: str,
        tell_progress: Callable[[str], None],
        tell_ready: Callable[[WorkerId], None],
    ) -> None:
        self._runtime = runtime
        self._model = model
        self._supervisor: Supervisor | None = None
        self._fabric: Fabric | None = None
        self._tell_progress = tell_progress
        self._tell_ready = tell_ready
        # Tokens are most of what is told, and the runtime's alone.
        self.run_chunk: Callable[[WorkerId, Chunk], None] = runtime.run_chunk
        self.run_done: Callable[[WorkerId, Done], None] = runtime.run_done
        self.run_failed: Callable[[WorkerId, Failed], None] = runtime.run_failed
        self.run_lost: Callable[[WorkerId, Sequence[RunId]], None] = runtime.run_lost
        self.worker_beat: Callable[[WorkerId, Beat], None] = runtime.worker_beat

    def attach(self, fabric: Fabric, supervisor: Supervisor | None) -> None:
        """Before the fabric starts. No supervisor: launcher `external`."""
        self._fabric, self._supervisor = fabric, supervisor

    # --- what the fabric tells ---

    def worker_known(self, worker_id: WorkerId, epoch: Epoch, pid: int, engine: str) -> None:
        """See FabricListener."""
        self._runtime.worker_known(worker_id, epoch, pid, engine)
        if self._supervisor is not None:
            self._supervisor.worker_seen(worker_id)

    def worker_loading(self, worker_id: WorkerId, detail: str) -> None:
        """See FabricListener."""
        log.info("worker loading", worker=worker_id, detail=detail)
        self._runtime.worker_loading(worker_id, detail)
        self._tell_progress(f"loading: {worker_id} {detail}")

    def worker_ready(self, worker_id: WorkerId, epoch: Epoch, capacity: Capacity) -> None:
        """See FabricListener."""
        # Only the last part of a path: another host may keep the same model in another folder.
        if self._fabric is not None and Path(capacity.model).name != Path(self._model).name:
            why = f"it serves the model {capacity.model!r}, the daemon {self._model!r}"
            self._fabric.refuse_worker(worker_id, why)
            return
        log.info("worker ready", worker=worker_id, device=capacity.device, kv_tokens=capacity.kv_tokens)
        self._runtime.worker_ready(worker_id, epoch, capacity)
        if self._supervisor is not None:
            self._supervisor.worker_ready(worker_id)
        self._tell_ready(worker_id)

    def kv_snapshot(self, worker_id: WorkerId, runs: Sequence[KvStored]) -> None:
        """See FabricListener; the scheduler alone needs to know."""
        log.info("cache told", worker=worker_id, blocks=sum(len(run.hashes) for run in runs) // HASH_BYTES)
        self._runtime.deciding.handle(KvSnapshotTaken(worker_id, tuple(runs)))

    def kv_changed(self, worker_id: WorkerId, changes: Sequence[KvChange]) -> None:
        """See FabricListener."""
        self._runtime.deciding.handle(KvReported(worker_id, tuple(changes)))

    def worker_lost(self, worker_id: WorkerId, reason: str) -> None:
        """See FabricListener."""
        log.warning("worker lost", worker=worker_id, reason=reason)
        self._runtime.worker_lost(worker_id, reason)
        if self._supervisor is not None:
            self._supervisor.worker_lost(worker_id)

    # --- what the supervisor tells ---

    def worker_started(self, worker_id: WorkerId, pid: int, restarts: int, adopted: bool) -> None:
        """See SupervisorListener."""
        log.info("worker adopted" if adopted else "worker started", worker=worker_id, pid=pid, restarts=restarts)
        self._runtime.worker_started(worker_id, pid, restarts)
        self._tell_progress(f"starting {worker_id}")

    def worker_exited(self, worker_id: WorkerId, code: int | None) -> None:
        """See SupervisorListener."""
        log.warning("worker exited", worker=worker_id, code=code)
        if self._fabric is not None:
            self._fabric.forget_worker(worker_id, f"its process has ended (exit code {code})")
