"""`prebled model tiny DIR`: write a tiny random-weight model and its tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path

from prebled.commands.output import write_line
from prebled.errors import SettingsError


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.add_argument("kind", choices=("tiny",), help="random weights, a few MB, good for trying things")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write it")


def run(args: argparse.Namespace) -> int:
    """Write the model."""
    from prebled.tiny_model import write_tiny_model

    try:
        write_tiny_model(args.folder)
    except OSError as error:
        raise SettingsError(f"cannot write the model to {args.folder}: {error.strerror or error}") from error
    write_line(str(args.folder))
    return 0
