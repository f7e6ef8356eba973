"""`prebled config show|check`: the settings as they would be merged now."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from prebled.commands.output import write_json, write_line, write_table
from prebled.commands.settings_options import sources_of
from prebled.settings_load import Loaded


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.add_argument(
        "action", choices=("show", "check"), help="show: every value and its source; check: only errors"
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings in TOML, instead of the usual files")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Load as `start` would, without flags, and print."""
    loaded = sources_of(args)
    (_show if args.action == "show" else _say_ok)(loaded, as_json=args.json)
    return 0


def _show(loaded: Loaded, *, as_json: bool) -> None:
    if as_json:
        write_json({value.key: {"value": value.value, "source": value.source} for value in loaded.values})
        return
    # Values as TOML writes them, ready to be copied into a file; JSON is the same for these types.
    rows = [(value.key, msgspec.json.encode(value.value).decode(), value.source) for value in loaded.values]
    write_table(("SETTING", "VALUE", "SOURCE"), rows)


def _say_ok(loaded: Loaded, *, as_json: bool) -> None:
    files = [str(path) for path in loaded.files]
    if as_json:
        write_json({"ok": True, "files": files})
    else:
        write_line(f"ok: {', '.join(files) or 'no files, defaults only'}")
