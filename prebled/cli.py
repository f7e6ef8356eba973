"""The command line: `prebled VERB ...`.

Exit 0 done, 1 failed, 2 bad usage, 130 interrupted; an error is one line on stderr that names the value. A verb's
module is imported when the verb is called: `prebled status` has to answer within 150 ms, all imports included.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from prebled import __version__
from prebled.commands import BadUsage
from prebled.errors import PrebledError

VERBS = {
    "start": "run the daemon",
    "worker": "run one worker, which dials the daemon",
    "status": "show the daemon and its workers",
    "generate": "continue a prompt",
    "chat": "talk to the model",
    "explain": "say why a request was placed where it was",
    "model": "write a tiny model for trying things without a download",
    "config": "show or check the settings",
    "replay": "replay a trace through the schedulers in virtual time",
    "bench": "measure a running daemon, or the scheduler alone",
}


class Parser(argparse.ArgumentParser):
    """Refuses bad usage in one line. (argparse itself would print the usage before it.)"""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"prebled: {' '.join(message.split())} (see '{self.prog} --help')\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may say what the terminal cannot
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # a reader that is gone shows here, not at exit
        return code
    except BadUsage as error:
        return _complain(str(error), 2)
    except PrebledError as error:
        return _complain(error.message, 1)
    except BrokenPipeError:
        # Nobody reads on; without this the interpreter would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="prebled", description="Prefix-aware scheduling of LLM requests.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"prebled {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    called = next((word for word in argv if not word.startswith("-")), "")
    for verb, help_text in VERBS.items():
        of_verb = verbs.add_parser(verb, help=help_text, description=help_text.capitalize(), allow_abbrev=False)
        if verb == called:
            command = importlib.import_module(f"prebled.commands.{verb}")
            command.configure(of_verb)
            of_verb.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    code: int = args.run(args)
    return code


def _complain(message: str, code: int) -> int:
    print("prebled:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
