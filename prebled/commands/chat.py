"""`prebled chat`: talk to the model, or ask it one thing with `-m`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from prebled.client import Client
from prebled.commands.client_options import add_connect, add_sampling, sampling_of
from prebled.commands.output import remark, write, write_line
from prebled.errors import PrebledError
from prebled.messages import ChatMessage

_HELP = "/new starts over, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.epilog = f"In the conversation: {_HELP}."
    parser.add_argument("-m", "--message", metavar="TEXT", help="say only this and leave")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told about its part")
    parser.add_argument("--verbose", action="store_true", help="show token counts of each turn on stderr")
    add_sampling(parser)
    add_connect(parser)


def run(args: argparse.Namespace) -> int:
    """One turn, or turns until the end of the input."""
    with Client(args.connect or "") as client:
        conversation = _Conversation(client, args)
        if args.message is not None:
            conversation.say(args.message)
        else:
            _converse(conversation, is_terminal=sys.stdin.isatty())
    return 0


class _Conversation:
    """The turns so far. A turn that failed or was stopped is forgotten."""

    def __init__(self, client: Client, args: argparse.Namespace) -> None:
        self._client = client
        self._options = sampling_of(args)
        self._is_verbose: bool = args.verbose
        self._opening = (ChatMessage("system", args.system),) if args.system is not None else ()
        self._turns: tuple[ChatMessage, ...] = self._opening

    def reset(self) -> None:
        """Start over."""
        self._turns = self._opening

    def say(self, text: str) -> None:
        """One turn; the answer is printed as it comes."""
        turns = (*self._turns, ChatMessage("user", text))
        said: list[str] = []
        with self._client.chat(turns, **self._options) as stream:
            for chunk in stream:
                said.append(chunk.text)
                write(chunk.text)
            write_line()
        self._turns = (*turns, ChatMessage("assistant", "".join(said)))
        if self._is_verbose and stream.usage is not None:
            usage = stream.usage
            remark(
                f"[{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached; "
                f"{usage.completion_tokens} generated, {stream.reason}]"
            )


def _converse(conversation: _Conversation, *, is_terminal: bool) -> None:
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() its line editing and history
        remark(_HELP)
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            conversation.reset()
        elif line:
            _say(conversation, line, is_terminal=is_terminal)


def _say(conversation: _Conversation, line: str, *, is_terminal: bool) -> None:
    """One turn; on a terminal a failed or stopped one is not the end of the conversation."""
    try:
        conversation.say(line)
    except PrebledError as error:
        if not is_terminal:
            raise
        remark(f"\nprebled: {error.message}")
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        remark("")
