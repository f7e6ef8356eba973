"""What commands print: text, tables and JSON on stdout, remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from prebled.errors import PrebledError


def write(text: str) -> None:
    """Print at once, without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_line(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")


def write_json(value: Any) -> None:
    """Print as indented JSON; structs as objects."""
    write_line(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def save_json(value: Any, to: str | None) -> bool:
    """Write as indented JSON to the file `to`, or to stdout for `-`, which is then to hold nothing else (True); None:
    nowhere. Raises PrebledError that names a file which cannot be written."""
    if to == "-":
        write_json(value)
    elif to is not None:
        try:
            Path(to).write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        except OSError as error:
            raise PrebledError(f"cannot write {to!r}: {error.strerror or error}") from error
    return to == "-"


def write_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print in aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    is_number = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    for line in [list(header), *cells]:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        write_line("  ".join(padded).rstrip())


def remark(text: str) -> None:
    """A line beside the output proper, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
