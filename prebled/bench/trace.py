"""Requests to replay: when they come, how long they are, and which blocks their prompts share.

`read_trace` takes a recorded trace (`trace_files` knows the formats) or a generated one (`generators`), and cuts, times
and hashes it for one replay. All that chance decides comes from the seed: a seed gives the same trace on any machine.
What a prompt says is not known here, only which of its blocks equal which.

Open loop: a request comes at its `arrival_s`, whatever became of the others; requests are in order of arrival.
Closed loop: a session's first turn comes at its `arrival_s`, each later one `think_s` after the answer before it ended.
The turns of a session stand together and in order, sessions in order of their starts; `arrival_s` of a later turn is
only what the recording had.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from prebled.bench.generators import PREFIX, parse_workload, record
from prebled.bench.trace_arrivals import cut, cut_sessions, spread_stamps, start_sessions
from prebled.bench.trace_blocks import hash_rows
from prebled.bench.trace_files import read_recording
from prebled.bench.trace_recording import Recording
from prebled.errors import SettingsError

DEFAULT_BLOCK_TOKENS = 64
DEFAULT_SESSION_RATE = 0.05
"""Sessions that start in a second, in a closed loop."""


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    """One request.

    `path`: the chained hashes of all full blocks of the prompt, 8 bytes little-endian each; equal hash, equal prefix.
    What the recording does not identify (the tail beyond its last full block, or everything where it has no hashes)
    has hashes of its own that match nothing else. `session` is "" where the request belongs to none. `next_path` is
    the path of the session's next turn where that turn holds this prompt and its answer whole, else empty: its blocks
    beyond `path` are those that the answer fills, as far as the answer goes. `think_s` is used in a closed loop only.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    path: bytes
    session: str = ""
    think_s: float = 0.0
    next_path: bytes = b""


class Trace(msgspec.Struct, frozen=True):
    """`block_tokens` of the paths. Never empty; the first request comes at 0."""

    name: str
    block_tokens: int
    requests: tuple[TraceRequest, ...]
    is_closed_loop: bool = False


def read_trace(
    source: str | Path,
    *,
    block_tokens: int | None = None,
    limit: int | None = None,
    rate_scale: float = 1.0,
    seed: int = 0,
    session_rate: float = DEFAULT_SESSION_RATE,
    trace_block_tokens: int | None = None,
    longest_prompt: int | None = None,
    longest_think_s: float | None = None,
) -> Trace:
    """The trace in file `source`, or the generated one that it names (`workload:NAME?...`), made for a replay.

    `trace_block_tokens`: block size of the file, where nothing beside or in it says so. For the others see
    `make_trace`; a generated trace that does not say how many requests it has gets `limit`.

    Raises SettingsError, naming file, line and value, for what is not a trace, and what `make_trace` raises.
    """
    _check_counts(limit=limit)
    name, recording = load_recording(source, requests=limit, seed=seed, trace_block_tokens=trace_block_tokens)
    return make_trace(
        name,
        recording,
        block_tokens=block_tokens,
        limit=limit,
        rate_scale=rate_scale,
        seed=seed,
        session_rate=session_rate,
        longest_prompt=longest_prompt,
        longest_think_s=longest_think_s,
    )


def load_recording(
    source: str | Path, *, requests: int | None = None, seed: int = 0, trace_block_tokens: int | None = None
) -> tuple[str, Recording]:
    """The name and the whole of a trace, in its own block size; `requests` for a generated one that does not say."""
    _check_counts(requests=requests, trace_block_tokens=trace_block_tokens)
    _check_seed(seed)
    if str(source).startswith(PREFIX):
        workload = parse_workload(str(source), requests)
        return workload.name, record(workload, seed)
    return Path(source).name, read_recording(Path(source), trace_block_tokens)


def make_trace(
    name: str,
    recording: Recording,
    *,
    block_tokens: int | None = None,
    limit: int | None = None,
    rate_scale: float = 1.0,
    seed: int = 0,
    session_rate: float = DEFAULT_SESSION_RATE,
    longest_prompt: int | None = None,
    longest_think_s: float | None = None,
) -> Trace:
    """A recording cut, timed and hashed for a replay.

    `block_tokens`: of the replay, any size (None: 64). `limit`: at most so many requests; a window of that many that
    starts where the seed says (closed loop: whole sessions that the seed picks, the last of them cut short).
    `rate_scale` 2.0: twice the rate of arrivals (of session starts, in a closed loop; think times stay).
    `session_rate`: sessions started in a second, Poisson, closed loop only. `longest_prompt`: requests with more prompt
    tokens are left out, and in a closed loop so is what follows in their session. `longest_think_s`: longer think times
    are cut to this.

    Raises SettingsError for values that are out of range or leave no request.
    """
    _check_counts(block_tokens=block_tokens, limit=limit, longest_prompt=longest_prompt)
    _check_seed(seed)
    for key, value in (("rate_scale", rate_scale), ("session_rate", session_rate)):
        if not 0 < value < math.inf:
            raise SettingsError(f"{key} is {value}, must be above 0", param=key)
    if longest_think_s is not None and not longest_think_s >= 0:
        raise SettingsError(f"longest_think_s is {longest_think_s}, must not be negative", param="longest_think_s")
    if longest_prompt is not None:
        recording = recording.without_longer(longest_prompt)
        if not recording.prompt_tokens.size:
            raise SettingsError(f"{name}: no prompt has at most {longest_prompt} tokens", param="longest_prompt")
    if recording.is_closed_loop:
        recording = cut_sessions(recording, limit, seed)
        arrivals = start_sessions(recording, session_rate * rate_scale, seed)
    else:
        recording = cut(spread_stamps(recording, seed), limit, seed)
        arrivals = np.round((recording.arrival_s - recording.arrival_s[0]) / rate_scale, 9)
    think_s = recording.think_s if longest_think_s is None else recording.think_s.clip(max=longest_think_s)
    block_tokens = block_tokens or DEFAULT_BLOCK_TOKENS
    paths, next_paths = hash_rows(recording, block_tokens, seed)
    rows = zip(
        arrivals.tolist(),
        recording.prompt_tokens.tolist(),
        recording.output_tokens.tolist(),
        paths,
        recording.sessions,
        think_s.tolist(),
        next_paths,
        strict=True,
    )
    return Trace(name, block_tokens, tuple(TraceRequest(*row) for row in rows), recording.is_closed_loop)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise SettingsError(f"{name} is {count}, must be at least 1", param=name)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise SettingsError(f"seed is {seed}, must not be negative", param="seed")
