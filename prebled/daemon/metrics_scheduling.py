"""What goes into the core and comes out of it, counted and timed on the way: decisions, reports of caches, steps.

The core knows no clock, so the seconds that a decision takes are measured here, around it. Counts by worker last as
long as the daemon: a worker that comes back goes on where it was, so that no counter ever goes down. What the core
counts by itself is asked of it when somebody wants to know. Not known here: what the shell makes of a decision.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

from prebled.core.blocks import HASH_BYTES
from prebled.core.decisions import AnyDecision, Place, Placed
from prebled.core.events import AnyEvent, KvReported, RequestArrived, StepsMeasured, WorkerReady
from prebled.core.scheduler import GlobalScheduler
from prebled.core.statistics import SchedulerStatistics
from prebled.core.types import WorkerId
from prebled.daemon.metrics_text import Family, Histogram, Metric, counter, gauge, histogram, pairs
from prebled.messages import KvCleared, KvRemoved, KvStored

DECIDE_S: Final = (0.00002, 0.00005, 0.0001, 0.00015, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
STEP_S: Final = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)

ADJUSTMENTS: Final = ("rebalanced", "replicated", "steered", "withdrawn")
"""First words of `Placement.adjusted`; anything else counts as `other`."""

MOST_WORKERS = 2048
"""Workers with counts of their own; further ones, which only a daemon of many lives' workers sees, share `other`."""

DECISIONS = counter("prebled_decisions_total", "Placements, by mode; a continued request is placed again.", "mode")
ADJUSTED = counter(
    "prebled_decisions_adjusted_total", "Placements whose plain choice was changed, by what changed it.", "adjustment"
)
DECIDE = histogram(
    "prebled_decide_seconds", "Time the scheduler took for an arrived request: hash, match, choose, book."
)
PREDICTIONS = counter("prebled_predictions_total", "First tokens whose cached tokens were held against the prediction.")
PREDICTIONS_EXACT = counter("prebled_predictions_exact_total", "Those of prebled_predictions_total that were right.")
PREDICTED_TOKENS = counter("prebled_predicted_cached_tokens_total", "Cached prompt tokens predicted by placements.")
ACTUAL_TOKENS = counter("prebled_actual_cached_tokens_total", "Cached prompt tokens that engines found instead.")
MISPREDICTIONS = counter("prebled_mispredictions_total", "Predictions that were wrong, by cause.", "cause")
MISPREDICTED_TOKENS = counter(
    "prebled_mispredicted_tokens_total", "Tokens by which they were wrong, by cause.", "cause"
)
EVENTS = counter("prebled_scheduler_events_total", "What else the scheduler counts, by its name for it.", "event")
PARKED = gauge("prebled_requests_parked", "Continued requests that wait for a worker.")
EXPECTED_OUTPUT = gauge("prebled_expected_output_tokens", "Output tokens expected of a request: the running mean.")
TREE_BLOCKS = gauge("prebled_tree_blocks", "Blocks in the prefix tree.")
TREE_NODES = gauge("prebled_tree_nodes", "Nodes of the prefix tree.")
TREE_LIMIT = gauge("prebled_tree_blocks_limit", "Most blocks that the prefix tree keeps.")
TREE_VISITS = gauge("prebled_tree_window_requests", "Requests in the history window.")

PLACEMENTS = counter("prebled_worker_placements_total", "Placements on the worker.", "worker")
STEPS = histogram("prebled_step_duration_seconds", "Time of an engine step, of the steps reported.", "worker")
STEP_TOTAL = counter("prebled_step_seconds_total", "Seconds of engine steps, of the steps reported.", "worker")
STEP_MODEL = counter("prebled_step_model_seconds_total", "Those of prebled_step_seconds_total in the model.", "worker")
STEP_ORDER = counter(
    "prebled_step_order_seconds_total", "Those of prebled_step_seconds_total spent on ordering the queue.", "worker"
)
KV_STORED = counter("prebled_kv_blocks_stored_total", "Blocks that the worker reported as stored.", "worker")
KV_REMOVED = counter(
    "prebled_kv_removals_total", "Evictions that the worker reported: a block with all that followed it.", "worker"
)
KV_CLEARED = counter("prebled_kv_clears_total", "Times the worker reported that its cache was cleared.", "worker")

METRICS = (
    *(DECISIONS, ADJUSTED, DECIDE, PREDICTIONS, PREDICTIONS_EXACT, PREDICTED_TOKENS, ACTUAL_TOKENS, MISPREDICTIONS),
    *(MISPREDICTED_TOKENS, EVENTS, PARKED, EXPECTED_OUTPUT, TREE_BLOCKS, TREE_NODES, TREE_LIMIT, TREE_VISITS),
    *(PLACEMENTS, STEPS, STEP_TOTAL, STEP_MODEL, STEP_ORDER, KV_STORED, KV_REMOVED, KV_CLEARED),
)

_BY_NAME: Final = {
    "predictions": PREDICTIONS,
    "predictions_exact": PREDICTIONS_EXACT,
    "cached_tokens_predicted": PREDICTED_TOKENS,
    "cached_tokens_actual": ACTUAL_TOKENS,
}
_BY_PREFIX: Final = {  # the longer of two that fit first
    "placed_": DECISIONS,
    "mispredicted_tokens_": MISPREDICTED_TOKENS,
    "mispredicted_": MISPREDICTIONS,
}
_REJECTED = "rejected_"
"""The runtime counts these, with those that never got here (`prebled_requests_rejected_total`)."""


class WorkerCounts:
    """What one worker reported and was given since the daemon started."""

    __slots__ = ("cleared", "model_s", "order_s", "placements", "removed", "steps", "stored")

    def __init__(self) -> None:
        self.placements = 0
        self.steps = Histogram(STEP_S)
        self.model_s = self.order_s = 0.0
        self.stored = self.removed = self.cleared = 0


class SchedulingMeter:
    """`scheduler` with a meter around it."""

    def __init__(self, scheduler: GlobalScheduler) -> None:
        self._scheduler = scheduler
        self._decide = Histogram(DECIDE_S)
        self._adjusted: Counter[str] = Counter(dict.fromkeys(ADJUSTMENTS, 0))
        self._workers: defaultdict[str, WorkerCounts] = defaultdict(WorkerCounts)
        self._notes: dict[type, Callable[[Any], None]] = {
            WorkerReady: self._worker_ready,
            StepsMeasured: self._steps_measured,
            KvReported: self._kv_reported,
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyDecision]:
        """See `GlobalScheduler.handle`."""
        kind = type(event)
        if kind is RequestArrived:
            start = time.perf_counter()
            decisions = self._scheduler.handle(event, now)
            self._decide.observe(time.perf_counter() - start)
        else:
            decisions = self._scheduler.handle(event, now)
            note = self._notes.get(kind)
            if note is not None:
                note(event)
        for decision in decisions:
            if type(decision) is Place:
                self._placed(decision.placement)
        return decisions

    def families(self, statistics: SchedulerStatistics, max_blocks: int) -> Iterator[Family]:
        """For `/metrics`. `statistics`: the scheduler's own, as of now; `max_blocks`: the tree's bound."""
        yield from _counted(statistics.counters)
        yield ADJUSTED.by(self._adjusted)
        yield Family(DECIDE, self._decide.samples())
        yield PARKED.one(statistics.parked)
        yield EXPECTED_OUTPUT.one(statistics.mean_output_tokens)
        yield TREE_BLOCKS.one(statistics.tree.blocks)
        yield TREE_NODES.one(statistics.tree.nodes)
        yield TREE_LIMIT.one(max_blocks)
        yield TREE_VISITS.one(statistics.tree.visits)
        yield from self._worker_families()

    # --- inside ---

    def _of(self, worker_id: WorkerId) -> WorkerCounts:
        if len(self._workers) >= MOST_WORKERS and worker_id not in self._workers:
            return self._workers["other"]
        return self._workers[worker_id]

    def _placed(self, placement: Placed) -> None:
        self._of(placement.worker_id).placements += 1
        for words in placement.adjusted:
            word = words.partition(":")[0]
            self._adjusted[word if word in ADJUSTMENTS else "other"] += 1

    def _worker_ready(self, event: WorkerReady) -> None:
        self._of(event.worker_id)  # its counters begin at 0 before they grow, or their first growth would not be seen

    def _steps_measured(self, event: StepsMeasured) -> None:
        counts = self._of(event.worker_id)
        for sample in event.samples:
            counts.steps.observe(sample.step_s)
            counts.model_s += sample.model_s
            counts.order_s += sample.order_s

    def _kv_reported(self, event: KvReported) -> None:
        counts = self._of(event.worker_id)
        for change in event.changes:
            match change:
                case KvStored():
                    counts.stored += len(change.hashes) // HASH_BYTES
                case KvRemoved():
                    counts.removed += len(change.hashes) // HASH_BYTES
                case KvCleared():
                    counts.cleared += 1

    def _worker_families(self) -> Iterator[Family]:
        labelled = [(pairs(("worker",), (name,)), counts) for name, counts in self._workers.items()]
        rows = [(f"{{{labels}}}", counts) for labels, counts in labelled]
        yield Family(PLACEMENTS, [(text, counts.placements) for text, counts in rows])
        yield Family(STEPS, [sample for labels, counts in labelled for sample in counts.steps.samples(labels)])
        yield Family(STEP_TOTAL, [(text, counts.steps.sum) for text, counts in rows])
        yield Family(STEP_MODEL, [(text, counts.model_s) for text, counts in rows])
        yield Family(STEP_ORDER, [(text, counts.order_s) for text, counts in rows])
        yield Family(KV_STORED, [(text, counts.stored) for text, counts in rows])
        yield Family(KV_REMOVED, [(text, counts.removed) for text, counts in rows])
        yield Family(KV_CLEARED, [(text, counts.cleared) for text, counts in rows])


def _counted(counters: dict[str, int]) -> Iterator[Family]:
    """The scheduler's counters by their names."""
    single = dict.fromkeys(_BY_NAME, 0)
    sorted_out: dict[Metric, dict[str, int]] = {metric: {} for metric in (*_BY_PREFIX.values(), EVENTS)}
    sorted_out[DECISIONS] = {"exploit": 0, "explore": 0}
    for name, count in counters.items():
        if name in single:
            single[name] = count
        elif not name.startswith(_REJECTED):
            prefix = next((prefix for prefix in _BY_PREFIX if name.startswith(prefix)), "")
            sorted_out[_BY_PREFIX[prefix] if prefix else EVENTS][name.removeprefix(prefix)] = count
    for name, metric in _BY_NAME.items():
        yield metric.one(single[name])
    for metric, counts in sorted_out.items():
        yield metric.by(counts)
