"""`prebled worker`: run one worker in the foreground; it dials a daemon that was started with `--launcher external`."""

from __future__ import annotations

import argparse
import os

from prebled.commands import BadUsage
from prebled.commands.settings_options import add_flags, log_format, serving_settings_of
from prebled.core.types import WorkerId
from prebled.errors import SettingsError
from prebled.runtime_dir import FABRIC_NAME, find_socket
from prebled.worker_options import WorkerOptions, check_options, model_for_workers, worker_options

_FLAGS = ("model", "engine", "tp", "block_tokens", "kv_tokens", "context_tokens", "queue_policy", "log")


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.epilog = "The daemon must have the same model and block size; it refuses a worker that has not."
    parser.add_argument("--id", required=True, metavar="ID", help="its name, the same after a restart, like w0")
    parser.add_argument(
        "--fabric",
        "--connect",
        dest="fabric_address",
        metavar="ADDRESS",
        help="the daemon's fabric_address, unix:PATH or tcp:HOST:PORT (default: fabric.sock beside its own socket)",
    )
    add_flags(parser, _FLAGS)


def run(args: argparse.Namespace) -> int:
    """Run until told to stop."""
    options = _options(args)
    # Imported only now: bad settings are refused without waiting for all of this.
    from prebled.worker.main import run_worker

    return run_worker(options)


def _options(args: argparse.Namespace) -> WorkerOptions:
    settings = serving_settings_of(args, "fabric_address")
    options = worker_options(
        settings,
        WorkerId(args.id),
        model=model_for_workers(settings.model),
        fabric_address=settings.fabric_address or find_socket(os.environ, FABRIC_NAME, settings.runtime_dir),
        log=log_format(settings),
    )
    try:
        check_options(options)
    except SettingsError as error:
        raise BadUsage(error.message) from error
    return options
