"""The lines of a trace file, plain or zstd, and complaints that name the file, the line and what is wrong there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from prebled.bench.trace_recording import Ints
from prebled.errors import SettingsError

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Lines:
    """The lines of a file that hold something, never none, and how to complain about one of them; rows count from 0.
    Raises SettingsError if the file cannot be read or is cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        numbered = [(number, line.strip()) for number, line in enumerate(_content(path).split(b"\n"), 1)]
        self.numbers = [number for number, line in numbered if line]
        self.lines = [line for _, line in numbered if line]
        if not self.lines:
            raise SettingsError(f"{path}: no requests in it")

    def complain(self, row: int, message: str) -> NoReturn:
        raise SettingsError(f"{self.path}, line {self.numbers[row]}: {message}")

    def refuse_first(self, is_bad: np.ndarray[Any, np.dtype[np.bool_]], message: str, *columns: Ints) -> None:
        """Complain about the first row that is bad; `message` takes the values of the columns there."""
        if is_bad.any():
            row = int(np.argmax(is_bad))
            self.complain(row, message.format(*(column[row] for column in columns)))


def _content(path: Path) -> bytes:
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise SettingsError(f"no such file: {path} (a generated trace is written workload:NAME)") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if not packed.startswith(_ZSTD_MAGIC) and path.suffix != ".zst":
        return packed
    import zstandard

    parts = []
    while packed:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise SettingsError(f"{path}: not a zstd file, or damaged ({error})") from error
        if not frame.eof:
            raise SettingsError(f"{path}: cut short after {sum(map(len, parts))} bytes of its content")
        packed = frame.unused_data
    return b"".join(parts)


def short(value: object) -> str:
    """A value for a message, cut to a readable length."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
