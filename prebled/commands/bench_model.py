"""The model that benches of the real engine run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def model_or_tiny(model: Path | None) -> Iterator[Path]:
    """`model`, or a tiny one with random weights that is there for the time being."""
    if model is not None:
        yield model
        return
    from prebled.tiny_model import write_tiny_model

    with tempfile.TemporaryDirectory(prefix="prebled-") as folder:
        tiny = Path(folder) / "tiny"
        write_tiny_model(tiny)
        yield tiny
