"""What the daemon knows of each worker, for people and for bounds: a read model fed by the fabric and the supervisor.

It decides nothing; which worker may be given a request is the scheduler's knowledge.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from prebled.core.types import Epoch, WorkerId
from prebled.messages import Beat, Capacity, WorkerStatus

WorkerState: TypeAlias = Literal["starting", "loading", "ready", "draining", "stopping", "lost"]


class _Row:
    __slots__ = ("beat", "capacity", "detail", "engine", "epoch", "pid", "restarts", "state")

    def __init__(self) -> None:
        self.state: WorkerState = "starting"
        self.pid = 0
        self.epoch = Epoch(0)
        self.engine = ""
        self.detail = ""
        self.restarts = 0
        self.capacity: Capacity | None = None
        self.beat: Beat | None = None


class WorkerTable:
    """One row per worker ever seen in this life of the daemon; rows of lost workers stay, with the reason."""

    def __init__(self) -> None:
        self._rows: dict[WorkerId, _Row] = {}

    def _row(self, worker_id: WorkerId) -> _Row:
        return self._rows.setdefault(worker_id, _Row())

    def expected(self, worker_id: WorkerId, pid: int, restarts: int) -> None:
        """The supervisor started a worker, or found one. One that it found may have dialled in before."""
        row = self._row(worker_id)
        row.restarts = restarts
        if row.pid == pid and row.state not in {"starting", "lost"}:
            return
        row.state, row.pid, row.detail = "starting", pid, ""
        row.capacity = row.beat = None

    def known(self, worker_id: WorkerId, epoch: Epoch, pid: int, engine: str) -> None:
        """A worker said Hello."""
        row = self._row(worker_id)
        row.state, row.epoch, row.pid, row.engine, row.detail = "loading", epoch, pid, engine, ""
        row.capacity = row.beat = None

    def loading(self, worker_id: WorkerId, detail: str) -> None:
        """A loading worker tells its progress."""
        self._row(worker_id).detail = detail

    def ready(self, worker_id: WorkerId, capacity: Capacity) -> None:
        """The worker serves."""
        row = self._row(worker_id)
        row.state, row.capacity, row.engine, row.detail = "ready", capacity, capacity.engine, ""

    def beat(self, worker_id: WorkerId, beat: Beat) -> None:
        """The newest load; a phase beyond `ready` changes the state."""
        row = self._row(worker_id)
        row.beat = beat
        if beat.phase in {"draining", "stopping"}:
            row.state = beat.phase

    def lost(self, worker_id: WorkerId, reason: str) -> None:
        """The worker is gone."""
        row = self._row(worker_id)
        row.state, row.detail = "lost", reason
        row.capacity = row.beat = None

    def state(self, worker_id: WorkerId) -> WorkerState | None:
        """The state of a worker; None if it was never seen."""
        row = self._rows.get(worker_id)
        return row.state if row else None

    def any_ready(self) -> bool:
        """Whether a worker serves."""
        return any(row.state == "ready" for row in self._rows.values())

    def max_total_tokens(self) -> int:
        """The most prompt + output tokens that any serving worker can hold; 0 if none serves."""
        return max((row.capacity.max_total_tokens for row in self._rows.values() if row.capacity), default=0)

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """One status per worker, by id."""
        return tuple(_status(worker_id, self._rows[worker_id]) for worker_id in sorted(self._rows))


def _status(worker_id: WorkerId, row: _Row) -> WorkerStatus:
    beat, capacity = row.beat, row.capacity
    return WorkerStatus(
        id=worker_id,
        pid=row.pid,
        state=row.state,
        engine=row.engine,
        device=capacity.device if capacity else "",
        queued=beat.queued if beat else 0,
        running=beat.running if beat else 0,
        kv_used_tokens=beat.kv_used_tokens if beat else 0,
        kv_total_tokens=capacity.kv_tokens if capacity else 0,
        epoch=row.epoch,
        restarts=row.restarts,
        detail=row.detail,
    )
