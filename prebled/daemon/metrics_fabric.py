"""The fabric's own counts as metrics, by the names of `FabricStatistics`' fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prebled.daemon.fabric_reports import FabricStatistics
from prebled.daemon.metrics_text import Family, Metric, counter, gauge

_GAUGES: Final = {
    "workers": "Workers connected, loading ones included.",
    "ready_workers": "Workers connected that serve.",
    "live_runs": "Runs sent to workers that have not ended.",
}
_COUNTERS: Final = {
    "batches": "Batches of runs sent.",
    "submits": "Runs sent.",
    "refused": "Workers refused.",
    "introduces": "Unknown workers asked to say Hello.",
    "workers_lost": "Workers lost.",
    "runs_lost": "Runs lost beyond those lost with their worker.",
    "unreachable": "Sends that found no connection or a full queue.",
    "bad_messages": "Messages that did not decode, frames left out.",
    "stale_messages": "Messages of another epoch, of an unknown worker, or out of turn.",
    "callback_errors": "Messages whose handling failed: bugs.",
    "frames": "Frames released in order.",
    "duplicate_frames": "Frames that had come before.",
    "stale_frames": "Frames and ends of another epoch.",
    "dropped_frames": "Frames beyond the window, asked for again later.",
    "bad_frames": "Frames that did not decode.",
    "gaps": "Ranges of frames missing so long that they were asked for.",
    "replays": "Asks for missing frames, repeated ones included.",
    "holes": "Ranges of frames that no ring had any more.",
    "late_chunks": "Chunks of runs that had ended or were lost.",
    "late_ends": "Ends of runs that had ended or were lost.",
    "kv_frames": "Frames released that are about a cache.",
    "snapshots": "Snapshots of caches taken.",
    "snapshots_asked": "Snapshots asked for; the first of each worker comes unasked.",
    "stale_snapshots": "Parts of snapshots not asked for or out of turn, and snapshots older than a hole.",
}

_BY_FIELD: Final[dict[str, Metric]] = {
    **{field: gauge(f"prebled_fabric_{field}", meaning) for field, meaning in _GAUGES.items()},
    **{field: counter(f"prebled_fabric_{field}_total", meaning) for field, meaning in _COUNTERS.items()},
}
METRICS = tuple(_BY_FIELD.values())


def fabric_families(statistics: FabricStatistics) -> Iterator[Family]:
    """One family per field."""
    for field, metric in _BY_FIELD.items():
        yield metric.one(getattr(statistics, field))
