"""Each worker as it stands: what the worker table and the scheduler say of it when asked.

A worker that is lost has a state and its restarts, and no load. Nothing is kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar, get_args

from prebled.core.cost import CostModel
from prebled.core.statistics import WorkerStatistics
from prebled.daemon.metrics_text import Family, Metric, Sample, counter, gauge, info, pairs
from prebled.daemon.worker_table import WorkerState
from prebled.messages import WorkerStatus

T = TypeVar("T", WorkerStatus, WorkerStatistics)

WORKERS = gauge("prebled_workers", "Workers, by state.", "state")
STATE = info("prebled_worker_info", "The worker's state, engine and device.", "worker", "state", "engine", "device")
EPOCH = gauge("prebled_worker_epoch", "The worker's life: greater after each of its starts.", "worker")
RESTARTS = counter("prebled_worker_restarts_total", "Times the worker was started again by this daemon.", "worker")
QUEUED = gauge("prebled_worker_queued_requests", "Requests waiting in the worker's engine.", "worker")
RUNNING = gauge("prebled_worker_running_requests", "Requests running in the worker's engine.", "worker")
KV_USED = gauge("prebled_worker_kv_used_tokens", "KV tokens in use by running requests.", "worker")
KV_TOTAL = gauge("prebled_worker_kv_capacity_tokens", "KV tokens that the worker has room for.", "worker")
BOOKED = gauge("prebled_worker_booked_requests", "Requests placed on the worker that have not ended.", "worker")
LOAD = gauge("prebled_worker_load_seconds", "Seconds of work that the worker still has to do, as predicted.", "worker")
HELD = gauge(
    "prebled_worker_held_tokens", "Tokens that the prefix tree believes to be in the worker's cache.", "worker"
)
COST = gauge(
    "prebled_worker_cost_seconds",
    "What work costs the worker, fitted to its steps: the coefficients of the linear-quadratic model.",
    *("worker", "coefficient"),
)

_OF_STATUS: Final[tuple[tuple[Metric, Callable[[WorkerStatus], float]], ...]] = (
    (EPOCH, lambda one: one.epoch),
    (QUEUED, lambda one: one.queued),
    (RUNNING, lambda one: one.running),
    (KV_USED, lambda one: one.kv_used_tokens),
    (KV_TOTAL, lambda one: one.kv_total_tokens),
)
_OF_STATISTICS: Final[tuple[tuple[Metric, Callable[[WorkerStatistics], float]], ...]] = (
    (BOOKED, lambda one: one.requests),
    (LOAD, lambda one: one.load_s),
    (HELD, lambda one: one.held_tokens),
)
_COEFFICIENTS: Final = tuple((field.removesuffix("_s"), field) for field in CostModel.__struct_fields__)

METRICS = (
    *(WORKERS, STATE, RESTARTS, COST),
    *(metric for metric, _ in _OF_STATUS),
    *(metric for metric, _ in _OF_STATISTICS),
)


def worker_families(statuses: Sequence[WorkerStatus], statistics: Sequence[WorkerStatistics]) -> Iterator[Family]:
    """`statuses`: all workers ever seen; `statistics`: those that the scheduler knows."""
    states = Counter(dict.fromkeys(get_args(WorkerState), 0))
    states.update(status.state for status in statuses)
    yield WORKERS.by(states)
    facts = [pairs(STATE.labels, (one.id, one.state, one.engine, one.device)) for one in statuses]
    yield Family(STATE, [(f"{{{text}}}", 1) for text in facts])
    labelled = [(_label(one.id), one) for one in statuses]
    yield Family(RESTARTS, [(text, one.restarts) for text, one in labelled])
    present = [(text, one) for text, one in labelled if one.state != "lost"]
    for metric, of_status in _OF_STATUS:
        yield Family(metric, [(text, of_status(one)) for text, one in present])
    known = [(_label(one.worker_id), one) for one in statistics]
    for metric, of_statistics in _OF_STATISTICS:
        yield Family(metric, [(text, of_statistics(one)) for text, one in known])
    yield Family(COST, [sample for one in statistics for sample in _coefficients(one)])


def _coefficients(one: WorkerStatistics) -> list[Sample]:
    worker = pairs(("worker",), (one.worker_id,))
    return [(f'{{{worker},coefficient="{name}"}}', getattr(one.cost, field)) for name, field in _COEFFICIENTS]


def _label(worker_id: str) -> str:
    return f"{{{pairs(('worker',), (worker_id,))}}}"
