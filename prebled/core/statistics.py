"""The global scheduler in numbers: for people, metrics and tests. Nothing is decided by them."""

from __future__ import annotations

import msgspec

from prebled.core.cost import CostModel
from prebled.core.prefix_tree import TreeStatistics
from prebled.core.types import WorkerId


class WorkerStatistics(msgspec.Struct, frozen=True):
    """One worker. `requests`: booked on it; `load_s`: seconds of its time still to do; `held_tokens`: believed to be in
    its cache; `cost`: what work costs it, fitted to `steps` of its steps (`steps_ignored` made no sense), whose times
    it misses by `cost_error` in the median, relative to them (None: not fitted yet). The rest is from its newest beat.
    """

    worker_id: WorkerId
    state: str
    requests: int
    load_s: float
    held_tokens: int
    cost: CostModel
    queued: int
    running: int
    kv_used_tokens: int
    steps: int = 0
    steps_ignored: int = 0
    cost_error: float | None = None


class SchedulerStatistics(msgspec.Struct, frozen=True):
    """Numbers as of now. `waiting`: placed without a token yet (what `max_waiting` bounds). `counters` since the start:
    `placed_MODE`, `rejected_CODE`, `ignored_EVENT`, `sends_failed`, `clock_steps_back`; of requests that got a first
    token `predictions`, `predictions_exact`, `cached_tokens_predicted`, `cached_tokens_actual`, and of those that have
    ended `mispredicted_CAUSE` (requests) and `mispredicted_tokens_CAUSE` (by how much); `kv_` before each of
    `ReportStatistics`."""

    requests: int
    waiting: int
    parked: int
    mean_output_tokens: float
    tree: TreeStatistics
    workers: tuple[WorkerStatistics, ...]
    counters: dict[str, int]
