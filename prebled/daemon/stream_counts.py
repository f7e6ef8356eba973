"""Counters of what happened in the workers' streams."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class StreamCounts:
    """Shared by all sequencers of a daemon."""

    frames: int = 0  # released
    duplicate_frames: int = 0
    stale_frames: int = 0  # frames and ends of another epoch
    dropped_frames: int = 0  # arrived beyond the window
    bad_frames: int = 0  # did not decode
    gaps: int = 0  # ranges of frames missing so long that they were asked for
    replays: int = 0  # asks sent, repeated ones included
    holes: int = 0  # ranges the ring no longer covered
    late_chunks: int = 0  # of runs that had ended or were lost
    late_ends: int = 0
    kv_frames: int = 0  # released ones that are about a cache
    snapshots: int = 0  # of caches, applied
    snapshots_asked: int = 0  # the first of each worker comes unasked
    stale_snapshots: int = 0  # parts not asked for or out of turn, and snapshots older than a hole
