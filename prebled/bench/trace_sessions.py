"""Which requests of a recording are turns of one conversation, where the file does not say.

A request goes on from an earlier one if the deepest block it shares with any earlier request is not its first and was
new in that request, at its end or one block before (the last block of a prompt is seldom full, and then the next turn
has another in its place). It is an inference: two answers to one prompt look like two turns.
"""

from __future__ import annotations

import numpy as np

from prebled.bench.trace_recording import Recording


def infer_sessions(recording: Recording) -> list[str]:
    """A name of its session for each request: that of the request it goes on from, else a new one."""
    requests = len(recording.sessions)
    blocks, bounds = recording.block_ids(0, requests)
    lengths = recording.recorded_blocks
    _, first, which = np.unique(blocks, return_index=True, return_inverse=True)
    owner = np.repeat(np.arange(requests), lengths)
    is_seen = first[which] < bounds[owner]
    # Identifiers are chained, so what is seen of a prompt is its beginning.
    depth = np.bincount(owner, weights=is_seen, minlength=requests).astype(np.int64)
    sessions: list[str] = []
    for row in range(requests):
        before = -1
        if depth[row] > 1:
            deepest = int(first[which[bounds[row] + depth[row] - 1]])
            creator = int(owner[deepest])
            if depth[row] >= lengths[creator] - 1:
                before = creator
        sessions.append(sessions[before] if before >= 0 else f"s{row}")
    return sessions
