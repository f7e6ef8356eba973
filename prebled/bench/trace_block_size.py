"""How many tokens a block of a trace file has, where the caller does not say: from its lines, an index, or a guess.

An index is an `INDEX.json` beside the file or one folder up: a list of objects with `file` (the path from the index)
and `block_size`. A guess is the one power of two from 16 up that explains most of the numbers of blocks, either as the
full ones of each prompt or as those with the last, partial one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from prebled.bench.trace_lines import Lines
from prebled.bench.trace_recording import Recording
from prebled.errors import SettingsError

_SIZES = tuple(1 << power for power in range(4, 15))


def size_in_lines(lines: Lines, sizes: list[int | None]) -> int | None:
    """What the lines say, which has to be the same in all; if nothing, what an index says; None if that is nothing."""
    first = sizes[0]
    for row, size in enumerate(sizes):
        if size != first:
            lines.complain(row, f"block_size is {size}, that of the first request is {first}")
    return first if first is not None else _size_in_index(lines.path)


def _size_in_index(path: Path) -> int | None:
    path = path.absolute()
    for folder in (path.parent, path.parent.parent):
        index = folder / "INDEX.json"
        if not index.is_file():
            continue
        try:
            entries = msgspec.json.decode(index.read_bytes(), type=list[dict[str, Any]])
        except (OSError, ValueError) as error:
            raise SettingsError(f"{index}: not a list of objects ({error})") from error
        name = path.relative_to(folder).as_posix()
        for entry in entries:
            if entry.get("file") == name:
                size = entry.get("block_size")
                return size if isinstance(size, int) and size > 0 else None
    return None


def fitting_size(lines: Lines, recording: Recording) -> int:
    """The guess. Raises SettingsError if there is none, or more than one."""
    has = recording.recorded_blocks > 0
    blocks, tokens = recording.recorded_blocks[has], recording.prompt_tokens[has]
    fits = {
        size: max(int((blocks == tokens // size).sum()), int((blocks == -(-tokens // size)).sum())) for size in _SIZES
    }
    most = max(fits.values())
    best = [size for size in _SIZES if fits[size] == most]
    if 2 * most <= blocks.size or len(best) > 1:
        found = "none fits" if 2 * most <= blocks.size else f"{' and '.join(map(str, best))} fit"
        raise SettingsError(
            f"{lines.path}: the size of its blocks is not given, and of the powers of two from {_SIZES[0]} {found} "
            f"(the first prompt with blocks has {blocks[0]} for {tokens[0]} tokens)",
            param="trace_block_tokens",
        )
    return best[0]
