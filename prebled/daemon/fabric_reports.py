"""What the fabric tells: as it happens, to its listener; and when asked, in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import msgspec

from prebled.core.types import Epoch, RunId, WorkerId
from prebled.messages import Beat, Capacity, Chunk, Done, Failed, KvChange, KvStored


class FabricListener(Protocol):
    """Called on the event loop, never from within a method of the fabric, so that a listener may call those freely.
    An exception is logged and counted, and costs only what that one call told."""

    def worker_known(self, worker_id: WorkerId, epoch: Epoch, pid: int, engine: str) -> None:
        """A worker was welcomed; it may still be loading. Followed by exactly one `worker_lost`, sooner or later."""

    def worker_loading(self, worker_id: WorkerId, detail: str) -> None:
        """What a worker that is not ready does; told when it changes."""

    def worker_ready(self, worker_id: WorkerId, epoch: Epoch, capacity: Capacity) -> None:
        """From now on `submit_nowait` takes runs for this worker."""

    def worker_beat(self, worker_id: WorkerId, beat: Beat) -> None:
        """The load of a worker that is or was ready; `beat.phase` tells whether it drains or stops."""

    def kv_snapshot(self, worker_id: WorkerId, runs: Sequence[KvStored]) -> None:
        """All that the worker's cache holds, parents before children. Follows each `worker_ready`, unless the worker
        failed to tell, and comes again when it was asked for or changes were lost."""

    def kv_changed(self, worker_id: WorkerId, changes: Sequence[KvChange]) -> None:
        """How the cache has changed since, in order; what a run stored comes before its `run_done`."""

    def worker_lost(self, worker_id: WorkerId, reason: str) -> None:
        """The worker is gone, and with it all its runs that had not ended."""

    def run_chunk(self, worker_id: WorkerId, chunk: Chunk) -> None:
        """Tokens of a run, in order."""

    def run_done(self, worker_id: WorkerId, done: Done) -> None:
        """A run has ended; all its tokens were passed on before."""

    def run_failed(self, worker_id: WorkerId, failed: Failed) -> None:
        """A run was refused or lost by the engine. Tokens that were still on their way are not passed on."""

    def run_lost(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        """The worker lives, but the rest of these runs cannot be had. The fabric has told it to abort them."""


@dataclasses.dataclass(slots=True)
class FabricCounts:
    """The counters of the fabric itself; its sockets and sequencers have their own."""

    batches: int = 0
    submits: int = 0
    refused: int = 0
    introduces: int = 0
    workers_lost: int = 0
    runs_lost: int = 0
    stale_messages: int = 0


class FabricStatistics(msgspec.Struct, frozen=True):
    """Workers and runs known now; counters since the start."""

    workers: int
    ready_workers: int
    live_runs: int
    batches: int
    submits: int
    refused: int
    introduces: int
    workers_lost: int
    runs_lost: int  # beyond those lost with their worker
    unreachable: int  # sends that found no connection or a full queue
    bad_messages: int  # did not decode; frames are counted apart
    stale_messages: int  # of another epoch, of an unknown worker, or out of turn
    callback_errors: int
    frames: int
    duplicate_frames: int
    stale_frames: int
    dropped_frames: int
    bad_frames: int
    gaps: int
    replays: int
    holes: int
    late_chunks: int
    late_ends: int
    kv_frames: int
    snapshots: int
    snapshots_asked: int
    stale_snapshots: int
