"""Arguments that the verbs of the native client share."""

from __future__ import annotations

import argparse
from typing import Any

from prebled.addresses import parse_address
from prebled.errors import SettingsError

_SAMPLING: tuple[tuple[str, type, str], ...] = (
    ("model", str, "the served model's name, to be sure"),
    ("max_tokens", int, "most tokens to generate (default: as many as fit)"),
    ("temperature", float, "0 is greedy"),
    ("top_p", float, "sample from the likeliest tokens that have this probability together"),
    ("top_k", int, "sample from this many likeliest tokens"),
    ("min_p", float, "sample from tokens at least this likely, relative to the likeliest"),
    ("seed", int, "of sampling; best effort"),
    ("cache_salt", str, "share cached prefixes only with requests of the same salt"),
)


def add_connect(parser: argparse.ArgumentParser) -> None:
    """`--connect ADDRESS`."""
    parser.add_argument(
        "--connect",
        metavar="ADDRESS",
        type=_address,
        help="unix:PATH or tcp:HOST:PORT of the daemon (default: the user's own, else the system's)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Everything of `prebled.client.Options`."""
    for name, kind, help_text in _SAMPLING:
        parser.add_argument(_flag(name), type=kind, help=help_text, metavar=name.rpartition("_")[2].upper())
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    parser.add_argument("--ignore-eos", action="store_true", default=None, help="go on past end-of-sequence")


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given."""
    names = [*(name for name, _, _ in _SAMPLING), "stop", "ignore_eos"]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _address(text: str) -> str:
    try:
        parse_address(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
