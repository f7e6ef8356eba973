"""Whether the block identifiers of a recording are chained: one stands for its block and all before it.

Then a block comes after the same block wherever it comes. Where that holds for every pair of neighbours, it holds for
whole prefixes, and no identifier comes twice in a prompt. Looks at runs, not at blocks: within a run each identifier
comes after the one below it, so that only where runs begin can there be anything else.
"""

from __future__ import annotations

import numpy as np

from prebled.bench.trace_recording import Ints, Recording

_NONE = -2
"""What the first block of a prompt comes after; no identifier is one above it."""


def broken_chain(recording: Recording) -> tuple[int, int, int] | None:
    """The first request that has an identifier after another block than a request does elsewhere, the identifier, and
    a request that does; None if there is none."""
    starts = recording.run_starts
    if not starts.size:
        return None
    lasts = starts + recording.run_counts - 1
    before = np.concatenate((np.full(1, _NONE, np.int64), lasts[:-1]))
    bounds = recording.run_bounds
    before[bounds[:-1][np.diff(bounds) > 0]] = _NONE
    owner = np.searchsorted(bounds, np.arange(starts.size), side="right") - 1
    # Each start with what it came after when it was first seen.
    _, first, which = np.unique(starts, return_index=True, return_inverse=True)
    expected = first[which]
    is_broken = before != before[expected]
    elsewhere = expected.copy()
    inside = _within_a_run(starts, lasts)
    is_inside = (inside >= 0) & (before != starts - 1)
    elsewhere[is_inside & ~is_broken] = inside[is_inside & ~is_broken]
    is_broken |= is_inside
    if not is_broken.any():
        return None
    run = int(np.argmax(is_broken))
    return int(owner[run]), int(starts[run]), int(owner[elsewhere[run]])


def _within_a_run(starts: Ints, lasts: Ints) -> Ints:
    """For the start of each run a run that has it further in, else -1."""
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(lasts[order])
    # The run that reaches furthest among those that begin before this one.
    is_new = np.concatenate((np.ones(1, bool), reach[1:] > reach[:-1]))
    furthest = order[np.maximum.accumulate(np.where(is_new, np.arange(order.size), 0))]
    below = np.searchsorted(starts[order], starts, side="left") - 1
    found = np.where((below >= 0) & (reach[below] >= starts), furthest[below], -1)
    result: Ints = found.astype(np.int64)
    return result
