"""The formats of trace files, plain or zstd, recognised by what they hold.

- JSON lines with `arrival_ms`, `input_tokens`, `output_tokens` and perhaps `session`, `hash_runs` (flat [first, count,
  first, count, ...] of block identifiers), `block_size` (the same in each line) and others, which are ignored. With
  `think_ms` it is a closed loop: `arrival_ms` counts from the start of the session, `think_ms` from the end of the
  session's answer before. Where that is null, it is what the arrivals leave after `api_ms`.
- Mooncake's JSON lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids`; blocks of 512 tokens. Sessions
  are inferred.
- Azure's CSV: TIMESTAMP,ContextTokens,GeneratedTokens; no blocks, so no two prompts share anything.

In all of them an identifier stands for its block and all before it. The size of the blocks comes from the caller, or
else as `trace_block_size` says. An answer of no tokens (its client gave up) counts as one token, for a prefill gives
one. Every fault is an error that names file, line and value.
"""

from __future__ import annotations

import dataclasses
import re
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from prebled.bench.trace_block_size import fitting_size, size_in_lines
from prebled.bench.trace_chains import broken_chain
from prebled.bench.trace_lines import Lines, short
from prebled.bench.trace_recording import Floats, Recording, bounds_of, runs_of
from prebled.bench.trace_sessions import infer_sessions
from prebled.errors import SettingsError

MOONCAKE_BLOCK_TOKENS = 512
_MOST_TOKENS = 1 << 40
"""Beyond this a number is not a count of tokens, and sums could overflow."""

_Time = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=_MOST_TOKENS)]
_MaybeTokens = Annotated[int, msgspec.Meta(ge=0, le=_MOST_TOKENS)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _OpenRow(msgspec.Struct):
    arrival_ms: _Time
    input_tokens: _Tokens
    output_tokens: _MaybeTokens
    session: str | None = None
    hash_runs: list[_Id] | None = None
    block_size: _Tokens | None = None


class _ClosedRow(msgspec.Struct):
    arrival_ms: _Time
    input_tokens: _Tokens
    output_tokens: _MaybeTokens
    session: Annotated[str, msgspec.Meta(min_length=1)]
    think_ms: _Time | None
    hash_runs: list[_Id] | None = None
    block_size: _Tokens | None = None
    api_ms: _Time | None = None


class _MooncakeRow(msgspec.Struct):
    timestamp: _Time
    input_length: _Tokens
    output_length: _MaybeTokens
    hash_ids: list[_Id]


_Row = TypeVar("_Row", _OpenRow, _ClosedRow, _MooncakeRow)


def read_recording(path: Path, trace_block_tokens: int | None = None) -> Recording:
    """What is in the file. Raises SettingsError."""
    lines = Lines(path)
    if not lines.lines[0].startswith((b"{", b"[")):
        return _read_azure(lines)
    keys = _keys(lines)
    if {"timestamp", "hash_ids"} <= keys:
        return _read_mooncake(lines, trace_block_tokens or MOONCAKE_BLOCK_TOKENS)
    if "think_ms" in keys:
        return _read_closed(lines, trace_block_tokens)
    if "arrival_ms" in keys:
        return _read_open(lines, trace_block_tokens)
    lines.complain(
        0,
        f"not a request of a known trace: it has {', '.join(sorted(keys)) or 'nothing'}; expected arrival_ms, "
        "input_tokens, output_tokens and hash_runs, or Mooncake's timestamp, input_length, output_length and hash_ids",
    )


def _keys(lines: Lines) -> set[str]:
    try:
        first = msgspec.json.decode(lines.lines[0])
    except ValueError as error:
        lines.complain(0, f"not JSON ({error}): {short(lines.lines[0])}")
    if not isinstance(first, dict):
        lines.complain(0, f"not a JSON object: {short(lines.lines[0])}")
    return set(first)


def _decode(lines: Lines, kind: type[_Row]) -> list[_Row]:
    decoder = msgspec.json.Decoder(kind)
    rows: list[_Row] = []
    try:
        # One statement: the work is in C.
        rows.extend(map(decoder.decode, lines.lines))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        row = len(rows)
        line = lines.lines[row]
        field = re.search(r"`\$\.(\w+)", str(error))
        if field:
            lines.complain(row, f"{field[1]} is {short(msgspec.json.decode(line)[field[1]])}: {error}")
        lines.complain(row, f"{error}: {short(line)}")
    return rows


def _read_open(lines: Lines, trace_block_tokens: int | None) -> Recording:
    rows = _decode(lines, _OpenRow)
    arrival_s = _seconds([row.arrival_ms for row in rows])
    _check_order(lines, arrival_s)
    prompt_tokens = np.array([row.input_tokens for row in rows], np.int64)
    size = trace_block_tokens or size_in_lines(lines, [row.block_size for row in rows])
    return _with_runs(
        lines,
        [row.hash_runs or [] for row in rows],
        size,
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=np.maximum(np.array([row.output_tokens for row in rows], np.int64), 1),
        sessions=[row.session or "" for row in rows],
        think_s=np.zeros(len(rows)),
    )


def _read_closed(lines: Lines, trace_block_tokens: int | None) -> Recording:
    rows = _decode(lines, _ClosedRow)
    think_s = np.zeros(len(rows))
    before: dict[str, _ClosedRow] = {}
    for number, row in enumerate(rows):
        earlier = before.get(row.session)
        if earlier and row.arrival_ms < earlier.arrival_ms:
            lines.complain(
                number,
                f"arrival_ms is {row.arrival_ms:g}, the turn before in {row.session!r} has {earlier.arrival_ms:g}",
            )
        if row.think_ms is not None:
            think_s[number] = row.think_ms / 1e3
        elif earlier:
            think_s[number] = max(row.arrival_ms - earlier.arrival_ms - (earlier.api_ms or 0), 0) / 1e3
        before[row.session] = row
    return _with_runs(
        lines,
        [row.hash_runs or [] for row in rows],
        trace_block_tokens or size_in_lines(lines, [row.block_size for row in rows]),
        arrival_s=_seconds([row.arrival_ms for row in rows]),
        prompt_tokens=np.array([row.input_tokens for row in rows], np.int64),
        output_tokens=np.maximum(np.array([row.output_tokens for row in rows], np.int64), 1),
        sessions=[row.session for row in rows],
        think_s=think_s,
        is_closed_loop=True,
    )


def _read_mooncake(lines: Lines, trace_block_tokens: int) -> Recording:
    rows = _decode(lines, _MooncakeRow)
    arrival_s = _seconds([row.timestamp for row in rows])
    _check_order(lines, arrival_s)
    ids = np.fromiter(chain.from_iterable(row.hash_ids for row in rows), np.int64)
    starts, counts, bounds = runs_of(ids, np.array([len(row.hash_ids) for row in rows], np.int64))
    recording = Recording(
        arrival_s=arrival_s,
        prompt_tokens=np.array([row.input_length for row in rows], np.int64),
        output_tokens=np.maximum(np.array([row.output_length for row in rows], np.int64), 1),
        sessions=[""] * len(rows),
        think_s=np.zeros(len(rows)),
        trace_block_tokens=trace_block_tokens,
        run_starts=starts,
        run_counts=counts,
        run_bounds=bounds,
    )
    recording = _checked(lines, recording)
    return dataclasses.replace(recording, sessions=infer_sessions(recording))


AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def _read_azure(lines: Lines) -> Recording:
    columns = tuple(name.strip() for name in lines.lines[0].decode(errors="replace").split(","))
    if columns != AZURE_COLUMNS:
        lines.complain(0, f"columns are {', '.join(columns)}; expected {', '.join(AZURE_COLUMNS)}, or JSON lines")
    if len(lines.lines) == 1:
        raise SettingsError(f"{lines.path}: no requests in it")
    cells = [_azure_cells(lines, row) for row in range(1, len(lines.lines))]
    stamps = np.array([stamp for stamp, _, _ in cells], "datetime64[ns]")
    arrival_s = (stamps - stamps[0]).astype(np.int64) / 1e9
    _check_order(lines, arrival_s, 1)
    return Recording(
        arrival_s=arrival_s,
        prompt_tokens=np.array([prompt for _, prompt, _ in cells], np.int64),
        output_tokens=np.array([output for _, _, output in cells], np.int64),
        sessions=[""] * len(cells),
        think_s=np.zeros(len(cells)),
        trace_block_tokens=None,
        run_starts=np.zeros(0, np.int64),
        run_counts=np.zeros(0, np.int64),
        run_bounds=np.zeros(len(cells) + 1, np.int64),
    )


def _azure_cells(lines: Lines, row: int) -> tuple[np.datetime64, int, int]:
    cells = lines.lines[row].decode(errors="replace").split(",")
    if len(cells) != len(AZURE_COLUMNS):
        lines.complain(row, f"{len(cells)} values instead of {len(AZURE_COLUMNS)}: {short(lines.lines[row])}")
    counts = []
    for name, cell in zip(AZURE_COLUMNS[1:], cells[1:], strict=True):
        if not cell.isdecimal() or not 1 <= int(cell) <= _MOST_TOKENS:
            lines.complain(row, f"{name} is {short(cell)}, must be a whole number of at least 1")
        counts.append(int(cell))
    try:
        return np.datetime64(cells[0].strip(), "ns"), counts[0], counts[1]
    except ValueError:
        lines.complain(row, f"TIMESTAMP is {short(cells[0])}, must be a date and time")


def _check_order(lines: Lines, arrival_s: Floats, header: int = 0) -> None:
    late = np.flatnonzero(np.diff(arrival_s) < 0)
    if late.size:
        row = int(late[0]) + 1
        lines.complain(
            row + header, f"arrives at {arrival_s[row]:.3f} s, before the request above it ({arrival_s[row - 1]:.3f} s)"
        )


def _with_runs(lines: Lines, runs: list[list[int]], size: int | None, **columns: Any) -> Recording:
    lengths = np.array([len(row) for row in runs], np.int64)
    lines.refuse_first(lengths % 2 == 1, "hash_runs has {} numbers, they come in pairs (first, count)", lengths)
    flat = np.fromiter(chain.from_iterable(runs), np.int64)
    recording = Recording(
        trace_block_tokens=size,
        run_starts=flat[::2],
        run_counts=flat[1::2],
        run_bounds=bounds_of(lengths // 2),
        **columns,
    )
    return _checked(lines, recording)


def _checked(lines: Lines, recording: Recording) -> Recording:
    """The same, its block size known if it has blocks at all, and its runs no longer than its prompts."""
    if not recording.run_starts.size:
        return recording
    is_bad = (recording.run_counts < 1) | (recording.run_counts > recording.prompt_tokens.max())
    if is_bad.any():
        run = int(np.argmax(is_bad))
        row = int(np.searchsorted(recording.run_bounds, run, side="right")) - 1
        lines.complain(
            row,
            f"hash_runs has a run of {recording.run_counts[run]} blocks, its prompt is "
            f"{recording.prompt_tokens[row]} tokens",
        )
    size = recording.trace_block_tokens or fitting_size(lines, recording)
    blocks, tokens = recording.recorded_blocks, recording.prompt_tokens
    lines.refuse_first(
        blocks > -(-tokens // size),
        f"{{}} blocks of {size} tokens are more than its prompt of {{}} tokens has",
        blocks,
        tokens,
    )
    broken = broken_chain(recording)
    if broken is not None:
        row, block, other = broken
        lines.complain(
            row,
            f"block {block} does not come after the same block as in line {lines.numbers[other]}; an identifier has to "
            "stand for its block and all before it",
        )
    return dataclasses.replace(recording, trace_block_tokens=size)


def _seconds(ms: list[float]) -> Floats:
    # To the nanosecond, so that times which were written in ms come back as the same numbers.
    return np.round(np.array(ms, np.float64) / 1e3, 9)
