"""From a recording's block identifiers to the paths of a replay.

A recorded identifier stands for a block of `trace_block_tokens` and everything before it. Block k of ours ends at token
(k+1)B, inside some recorded block: its hash is made from that identifier and how far into that block ours ends. So a
larger recorded block becomes several of ours, smaller ones are grouped, and sizes that do not divide each other work
too; two prompts share our block exactly if they share the recorded block that it ends in. The tail of a prompt that no
full recorded block covers gets hashes of its own, except where the session's next turn goes on from this prompt: then
they are that turn's, for it holds the same tokens there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prebled.bench.trace_recording import Recording

_AT_ONCE = 1 << 17
"""Blocks that are hashed at once; what is between fits into a core's cache."""
_UNIQUE = np.uint64(1 << 63)
"""Set in what hashes of a single request come from, never in recorded identifiers."""
_BYTES = 8


def hash_rows(recording: Recording, block_tokens: int, seed: int) -> tuple[list[bytes], list[bytes]]:
    """Of each request its path and, if its session's next turn holds it and its answer, that turn's path."""
    covered = _covered_blocks(recording, block_tokens)
    parts = list(_recorded_hashes(recording, covered, block_tokens, seed))
    following = continued_by(recording)
    blocks = recording.prompt_tokens // block_tokens
    paths = [b""] * len(parts)
    next_paths = [b""] * len(parts)
    # Backwards: the path of the next turn has to be there first.
    for row in range(len(parts) - 1, -1, -1):
        known, count, then = int(covered[row]), int(blocks[row]), int(following[row])
        tail = b""
        if then >= 0:
            next_paths[row] = paths[then]
            tail = paths[then][known * _BYTES : count * _BYTES]
        elif count > known:
            own = _mix(_UNIQUE | np.uint64(row), seed)
            tail = _mix(np.arange(known, count, dtype=np.uint64) + own).astype("<u8").tobytes()
        paths[row] = parts[row] + tail
    return paths, next_paths


def continued_by(recording: Recording) -> NDArray[np.int64]:
    """For each request the row of its session's next turn if that one goes on from it, else -1: it has all full
    recorded blocks of this prompt at its start, and room for the prompt and the answer."""
    count = len(recording.sessions)
    following = np.full(count, -1, np.int64)
    last_of: dict[str, int] = {}
    for row, session in enumerate(recording.sessions):
        if session:
            before = last_of.get(session)
            if before is not None:
                following[before] = row
            last_of[session] = row
    rows = np.flatnonzero(following >= 0)
    after, full = following[rows], recording.full_blocks
    # Identifiers are chained: the last one of the shorter prompt speaks for all before it.
    ends = recording.ids_at(rows, full[rows] - 1)
    goes_on = (
        (ends >= 0)
        & (full[after] >= full[rows])
        & (recording.ids_at(after, full[rows] - 1) == ends)
        & (recording.prompt_tokens[after] >= recording.prompt_tokens[rows] + recording.output_tokens[rows])
    )
    following[rows[~goes_on]] = -1
    return following


def _covered_blocks(recording: Recording, block_tokens: int) -> NDArray[np.int64]:
    """How many of our blocks the full recorded ones of each request cover."""
    covered: NDArray[np.int64] = recording.full_blocks * (recording.trace_block_tokens or 0) // block_tokens
    return covered


def _recorded_hashes(recording: Recording, covered: NDArray[np.int64], block_tokens: int, seed: int) -> Iterator[bytes]:
    """The hashes of the covered blocks of each request."""
    size = recording.trace_block_tokens or 1
    ends = np.cumsum(covered)
    start = 0
    while start < len(covered):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + _AT_ONCE, side="right")), start + 1)
        counts = covered[start:stop]
        ids, firsts = recording.block_ids(start, stop)
        # Position of each of our blocks in its own prompt, then the recorded block in which it ends, and where there.
        offsets = np.cumsum(counts) - counts
        position = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(offsets, counts)
        end = (position + 1) * block_tokens
        within = (end - 1) // size
        hashes = _mix(ids[np.repeat(firsts, counts) + within].astype(np.uint64), seed)
        hashes = _mix(hashes + (end - within * size).astype(np.uint64)).astype("<u8")
        packed = hashes.tobytes()
        for offset, count in zip(offsets.tolist(), counts.tolist(), strict=True):
            yield packed[offset * _BYTES : (offset + count) * _BYTES]
        start = stop


def _mix(values: NDArray[np.uint64] | np.uint64, seed: int = 0) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): one to one, and never 0."""
    salt = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, np.uint64) + salt
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return np.where(mixed == 0, np.uint64(1), mixed)
