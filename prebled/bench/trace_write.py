"""Writing a recording as JSON lines, plain or zstd, in the format that `trace_files` reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from prebled.bench.trace_recording import Recording
from prebled.errors import SettingsError


def write_recording(path: Path, recording: Recording) -> None:
    """One object a line, in the order of the recording; compressed if the name ends in `.zst`. The file is there as a
    whole or not at all. Raises SettingsError if it cannot be written."""
    content = b"".join(msgspec.json.encode(row) + b"\n" for row in _rows(recording))
    if path.suffix == ".zst":
        import zstandard

        content = zstandard.ZstdCompressor(level=9, write_content_size=True).compress(content)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error


def _rows(recording: Recording) -> Iterator[dict[str, Any]]:
    runs = [
        number
        for pair in zip(recording.run_starts.tolist(), recording.run_counts.tolist(), strict=True)
        for number in pair
    ]
    bounds = (2 * recording.run_bounds).tolist()
    columns = zip(
        recording.arrival_s.tolist(),
        recording.prompt_tokens.tolist(),
        recording.output_tokens.tolist(),
        recording.sessions,
        recording.think_s.tolist(),
        strict=True,
    )
    for number, (arrival_s, prompt_tokens, output_tokens, session, think_s) in enumerate(columns):
        row: dict[str, Any] = {
            "arrival_ms": round(arrival_s * 1e3, 3),
            "input_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "session": session or None,
        }
        if recording.is_closed_loop:
            row["think_ms"] = round(think_s * 1e3, 3)
        if recording.trace_block_tokens is not None:
            row["block_size"] = recording.trace_block_tokens
            row["hash_runs"] = runs[bounds[number] : bounds[number + 1]]
        else:
            row["hash_runs"] = None
        yield row
