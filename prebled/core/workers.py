"""The workers as the global scheduler knows them: states, capacities, and who can take a request.

Every worker has a slot, a small number that the prefix tree and the load arrays use in its place. A worker that comes
back under its name gets its slot back; another may have it only once nothing remembers the old one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prebled.core.requests import Request
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity


class WorkerState(enum.Enum):
    """Whether a worker takes requests. Before its first READY (it loads) the scheduler does not know it."""

    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.LOST}),
    WorkerState.DRAINING: frozenset({WorkerState.LOST}),  # only a new epoch serves again
    WorkerState.LOST: frozenset(),
}


class Worker:
    """One life of a worker. `requests`: those booked on it, oldest first. The last three are from its newest beat."""

    __slots__ = ("capacity", "epoch", "kv_used_tokens", "queued", "requests", "running", "slot", "state", "worker_id")

    def __init__(self, worker_id: WorkerId, slot: int, epoch: Epoch, capacity: Capacity) -> None:
        self.worker_id = worker_id
        self.slot = slot
        self.epoch = epoch
        self.capacity = capacity
        self.state = WorkerState.READY
        self.requests: dict[RequestId, Request] = {}
        self.queued = 0
        self.running = 0
        self.kv_used_tokens = 0

    def move(self, state: WorkerState) -> None:
        """Change state. An arrow that is not in the table is a bug: AssertionError."""
        assert state in TRANSITIONS[self.state], f"worker {self.worker_id}: {self.state} -> {state}"
        self.state = state

    def fits(self, request: Request) -> bool:
        """Whether a request of this size can be computed there at all."""
        capacity = self.capacity
        total_tokens = request.prompt_tokens + request.max_tokens
        return request.prompt_tokens <= capacity.max_prompt_tokens and total_tokens <= capacity.max_total_tokens


class Candidates:
    """Workers that could take a request, by slot; their ids and slots once more as the policies want them."""

    __slots__ = ("_prompt_tokens", "_total_tokens", "ids", "slots", "workers")

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self.ids = [worker.worker_id for worker in workers]
        self.slots: NDArray[np.int64] = np.array([worker.slot for worker in workers], np.int64)
        self._prompt_tokens = min((worker.capacity.max_prompt_tokens for worker in workers), default=0)
        self._total_tokens = min((worker.capacity.max_total_tokens for worker in workers), default=0)

    def all_fit(self, request: Request) -> bool:
        """Whether every one of them can hold this request."""
        prompt_tokens = request.prompt_tokens
        return prompt_tokens <= self._prompt_tokens and prompt_tokens + request.max_tokens <= self._total_tokens


class Workers:
    """All workers that are not lost. `is_slot_free` tells whether nothing remembers a slot any more."""

    def __init__(self, is_slot_free: Callable[[int], bool]) -> None:
        self._is_slot_free = is_slot_free
        self._by_id: dict[WorkerId, Worker] = {}
        self._slots: dict[WorkerId, int] = {}  # of lost workers too
        self._ready = Candidates([])
        self.slot_count = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, worker_id: WorkerId) -> Worker | None:
        """The worker of this name, unless it is lost or unknown."""
        return self._by_id.get(worker_id)

    def ready(self) -> Candidates:
        """The workers that take requests."""
        return self._ready

    def fitting(self, request: Request) -> Candidates:
        """The workers that take requests and can hold this one, those it avoids left out."""
        ready = self._ready
        if not request.avoided and ready.all_fit(request):
            return ready
        fitting = [worker for worker in ready.workers if worker not in request.avoided and worker.fits(request)]
        return Candidates(fitting)

    def add(self, worker_id: WorkerId, epoch: Epoch, capacity: Capacity) -> Worker:
        """A worker that serves from now on."""
        worker = Worker(worker_id, self._slot_for(worker_id), epoch, capacity)
        self._by_id[worker_id] = worker
        self._changed()
        return worker

    def update(self, worker: Worker, capacity: Capacity) -> None:
        """It says once more what it can hold."""
        worker.capacity = capacity
        self._changed()

    def drain(self, worker: Worker) -> None:
        """It takes nothing new."""
        worker.move(WorkerState.DRAINING)
        self._changed()

    def remove(self, worker: Worker) -> None:
        """It is lost."""
        worker.move(WorkerState.LOST)
        del self._by_id[worker.worker_id]
        self._changed()

    def _changed(self) -> None:
        ready = [worker for worker in self._by_id.values() if worker.state is WorkerState.READY]
        self._ready = Candidates(sorted(ready, key=lambda worker: worker.slot))

    def _slot_for(self, worker_id: WorkerId) -> int:
        slot = self._slots.get(worker_id)
        if slot is None:
            for gone, old in self._slots.items():
                if gone not in self._by_id and self._is_slot_free(old):
                    del self._slots[gone]
                    slot = old
                    break
            else:
                slot = self.slot_count
                self.slot_count += 1
            self._slots[worker_id] = slot
        return slot
