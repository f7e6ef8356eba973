"""`prebled generate PROMPT`: stream a continuation to stdout."""

from __future__ import annotations

import argparse
import sys

from msgspec.structs import asdict

from prebled.client import Client
from prebled.commands.client_options import add_connect, add_sampling, sampling_of
from prebled.commands.output import write, write_json, write_line
from prebled.errors import InvalidValue


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from stdin")
    add_sampling(parser)
    add_connect(parser)
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON, with tokens and usage")


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    prompt = _read_stdin() if args.prompt == "-" else args.prompt
    with Client(args.connect or "") as client, client.generate(prompt, **sampling_of(args)) as stream:
        if args.json:
            answer = stream.collect()
            # By name: on the wire `Usage` is an array.
            write_json({**asdict(answer), "usage": asdict(answer.usage)})
            return 0
        for chunk in stream:
            write(chunk.text)
    write_line()
    return 0


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(f"the prompt on stdin is not text: {error}") from error
