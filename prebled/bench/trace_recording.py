"""A recorded trace as it stands in its file: columns, checked, in its own block size.

Block identifiers are kept as runs (first, count) of consecutive ones, which is how prompts that share most of their
blocks come; they are expanded only for the requests that are hashed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recording:
    """One entry per request in each column; never empty when read from a file.

    `arrival_s`: from the start of the trace; in a closed loop from the start of the session. `sessions`: "" for none.
    `think_s`: in a closed loop, between the end of the session's answer before and this request. `trace_block_tokens`
    is None where nothing is known of blocks. `run_starts` and `run_counts` are the runs of all requests one after
    another, those of request i from `run_bounds[i]` to `run_bounds[i+1]`; `recorded_blocks` their sum for each.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    sessions: list[str]
    think_s: Floats
    trace_block_tokens: int | None
    run_starts: Ints
    run_counts: Ints
    run_bounds: Ints
    is_closed_loop: bool = False

    @property
    def recorded_blocks(self) -> Ints:
        """How many identifiers each request has; the last may stand for a block that its prompt does not fill."""
        sums: Ints = bounds_of(self.run_counts)
        blocks: Ints = sums[self.run_bounds[1:]] - sums[self.run_bounds[:-1]]
        return blocks

    @property
    def full_blocks(self) -> Ints:
        """How many of them its prompt fills."""
        full: Ints = np.minimum(self.recorded_blocks, self.prompt_tokens // (self.trace_block_tokens or 1))
        return full

    def block_ids(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """The identifiers of requests `start` to `stop` one after another, and where each request's begin."""
        runs = slice(int(self.run_bounds[start]), int(self.run_bounds[stop]))
        starts, counts = self.run_starts[runs], self.run_counts[runs]
        before = np.cumsum(counts) - counts
        ids = np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)
        firsts: Ints = bounds_of(counts)[self.run_bounds[start:stop] - self.run_bounds[start]]
        return ids, firsts

    def ids_at(self, rows: Ints, positions: Ints) -> Ints:
        """Of each row in `rows` the identifier at that position (0 is the first), -1 where the position is negative."""
        sums = bounds_of(self.run_counts)
        wanted = sums[self.run_bounds[rows]] + np.maximum(positions, 0)
        found: Ints = np.full(len(rows), -1, np.int64)
        known = (positions >= 0) & (wanted < sums[self.run_bounds[rows + 1]])
        run = np.searchsorted(sums, wanted[known], side="right") - 1
        found[known] = self.run_starts[run] + wanted[known] - sums[run]
        return found

    def take(self, rows: Ints) -> Recording:
        """The same with these requests only, in this order."""
        counts = np.diff(self.run_bounds)[rows]
        bounds = bounds_of(counts)
        runs = np.repeat(self.run_bounds[rows] - bounds[:-1], counts) + np.arange(int(bounds[-1]), dtype=np.int64)
        return dataclasses.replace(
            self,
            arrival_s=self.arrival_s[rows],
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            sessions=[self.sessions[row] for row in rows.tolist()],
            think_s=self.think_s[rows],
            run_starts=self.run_starts[runs],
            run_counts=self.run_counts[runs],
            run_bounds=bounds,
        )

    def at(self, arrival_s: Floats) -> Recording:
        """The same at other times."""
        return dataclasses.replace(self, arrival_s=arrival_s)

    def without_longer(self, prompt_tokens: int) -> Recording:
        """Without requests of longer prompts; in a closed loop without what follows them in their session either."""
        is_short = self.prompt_tokens <= prompt_tokens
        if self.is_closed_loop:
            ended: set[str] = set()
            for row, session in enumerate(self.sessions):
                if session in ended or not is_short[row]:
                    ended.add(session)
                    is_short[row] = False
        return self.take(np.flatnonzero(is_short))


def runs_of(ids: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Starts, counts and bounds of the runs in the identifiers of all requests, `counts` of them for each."""
    begins = np.ones(ids.size, bool)
    begins[1:] = ids[1:] != ids[:-1] + 1
    bounds = bounds_of(counts)
    begins[bounds[:-1][counts > 0]] = True
    first = np.flatnonzero(begins)
    return ids[first], np.diff(np.append(first, ids.size)), bounds_of(begins)[bounds]


def recording_of(
    prompt_tokens: Ints, output_tokens: Ints, sessions: list[str], block_tokens: int, starts: Ints, counts: Ints
) -> Recording:
    """An open loop without times (all at 0), its runs as two arrays of one row per request; runs of no block count
    nothing."""
    requests = prompt_tokens.size
    is_run = counts > 0
    return Recording(
        arrival_s=np.zeros(requests),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        sessions=sessions,
        think_s=np.zeros(requests),
        trace_block_tokens=block_tokens,
        run_starts=starts[is_run],
        run_counts=counts[is_run],
        run_bounds=bounds_of(is_run.sum(axis=1)),
    )


def concatenated(recordings: Sequence[Recording]) -> Recording:
    """One after another; blocks of one are not those of another. All open loops of one block size."""
    starts, next_id = [], 0
    for recording in recordings:
        starts.append(recording.run_starts + next_id)
        next_id = int((starts[-1] + recording.run_counts).max(initial=next_id))
    return dataclasses.replace(
        recordings[0],
        arrival_s=np.concatenate([each.arrival_s for each in recordings]),
        prompt_tokens=np.concatenate([each.prompt_tokens for each in recordings]),
        output_tokens=np.concatenate([each.output_tokens for each in recordings]),
        sessions=[session for each in recordings for session in each.sessions],
        think_s=np.concatenate([each.think_s for each in recordings]),
        run_starts=np.concatenate(starts),
        run_counts=np.concatenate([each.run_counts for each in recordings]),
        run_bounds=bounds_of(np.concatenate([np.diff(each.run_bounds) for each in recordings])),
    )


def bounds_of(counts: Ints | NDArray[np.bool_]) -> Ints:
    """Where each of so many begins if they stand one after another, and where the last ends."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
