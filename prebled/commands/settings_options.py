"""Flags that stand for settings, and the settings that come of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from prebled.commands import BadUsage
from prebled.errors import SettingsError
from prebled.settings import Settings
from prebled.settings_load import Loaded, load_settings, load_with_sources

FLAGS: dict[str, tuple[str, str]] = {
    "model": ("M", "folder or Hugging Face name of the model"),
    "workers": ("N", "how many (default: one per visible GPU, or one)"),
    "tp": ("N", "GPUs per worker: tensor parallelism"),
    "engine": ("E", "sglang or sim"),
    "policy": ("P", "how requests are placed (default: e2)"),
    "queue_policy": ("P", "how a worker orders its queue (default: groups)"),
    "block_tokens": ("B", "tokens per block of the prefix tree and page of the KV cache"),
    "kv_tokens": ("T", "size of a worker's KV cache (default: what fits)"),
    "context_tokens": ("T", "longest context (default: the model's own)"),
    "served_model_name": ("NAME", "what clients call the model (default: its own name)"),
    "launcher": ("L", "local: the daemon starts its workers; external: they dial in"),
    "log": ("FORMAT", "json or console"),
}
"""Settings with a flag of their own: metavar and help. The rest is for files and `PREBLED_*` variables."""


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """`--config FILE` and the flags of these settings. Values are judged by `settings_of`, like those of a file."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings in TOML, instead of the usual files")
    for name in names:
        metavar, help_text = FLAGS[name]
        parser.add_argument("--" + name.replace("_", "-"), metavar=metavar, help=help_text)


def settings_of(args: argparse.Namespace, *more: str) -> Settings:
    """The settings that the flags, the environment and the files make; `more` are settings with flags beside `FLAGS`.
    Raises BadUsage."""
    flags = {name: getattr(args, name, None) for name in (*FLAGS, *more)}
    try:
        return load_settings(args.config, os.environ, flags)
    except SettingsError as error:
        raise BadUsage(error.message) from error


def serving_settings_of(args: argparse.Namespace, *more: str) -> Settings:
    """As `settings_of`, for a process that serves: it needs a model. Raises BadUsage."""
    settings = settings_of(args, *more)
    if not settings.model:
        raise BadUsage("model: none is named; give --model FOLDER or NAME")
    return settings


def sources_of(args: argparse.Namespace) -> Loaded:
    """The settings with their sources, from the environment and the files. Raises SettingsError."""
    return load_with_sources(args.config, os.environ, {})


def log_format(settings: Settings) -> Literal["json", "console"]:
    """As set; else for people on a terminal, for machines elsewhere."""
    if settings.log:
        return "json" if settings.log == "json" else "console"
    return "console" if sys.stderr.isatty() else "json"
