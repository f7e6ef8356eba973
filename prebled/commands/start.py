"""`prebled start`: run the daemon in the foreground."""

from __future__ import annotations

import argparse

from prebled.commands.settings_options import FLAGS, add_flags, log_format, serving_settings_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.epilog = "Flags win over PREBLED_* variables, those over the file. See 'prebled config show'."
    add_flags(parser, FLAGS)
    parser.add_argument(
        "--http", action="append", metavar="ADDRESS", help="serve OpenAI's API at HOST:PORT or unix:PATH; repeatable"
    )
    parser.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="serve clients at unix:PATH or tcp:HOST:PORT; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Run until told to stop."""
    settings = serving_settings_of(args, "http", "listen")
    # Imported only now: bad settings are refused without waiting for all of this.
    from prebled.daemon.main import run_daemon
    from prebled.logs import configure_logging

    configure_logging(log_format(settings), settings.log_level)
    return run_daemon(settings)
