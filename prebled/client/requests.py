"""From what callers write to the `Generate` message: prompts in any form, chat messages, options.

Types are made fit for the wire here; ranges are the daemon's to judge.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from prebled.errors import InvalidValue
from prebled.messages import ChatMessage, Generate

Prompt: TypeAlias = str | bytes | Iterable[int]
"""Text; or token ids: any iterable of ints (list, `array`, NumPy), or bytes of little-endian uint32."""

Messages: TypeAlias = Sequence[ChatMessage | Mapping[str, str]]
"""Turns of a chat, as `{"role": ..., "content": ...}` or `ChatMessage`."""


class Options(TypedDict, total=False):
    """What `generate` and `chat` take beside the prompt; anything left out has the daemon's default.

    `model`: the served model's name, to be sure. `max_tokens`: most output tokens (default: as many as fit).
    `temperature`: 0 is greedy. `top_p`, `top_k`, `min_p`: as usual, off by default. `stop`: one or more strings that
    end the answer and are not part of it. `ignore_eos`: go on past end-of-sequence. `seed`: best effort.
    `cache_salt`: prompts share cached prefixes only with prompts of the same salt.
    """

    model: str
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop: str | Sequence[str]
    ignore_eos: bool
    seed: int | None
    cache_salt: str


def prompt_request(prompt: Prompt, options: Mapping[str, Any]) -> Generate:
    """The message for `generate`. Raises InvalidValue; TypeError for an unknown option."""
    known = _options(options)
    if isinstance(prompt, str):
        return Generate(call=0, prompt=prompt, **known)
    return Generate(call=0, prompt_tokens=encode_ids(prompt), **known)


def chat_request(messages: Messages, options: Mapping[str, Any]) -> Generate:
    """The message for `chat`. Raises InvalidValue; TypeError for an unknown option."""
    return Generate(call=0, messages=tuple(map(_message, messages)), **_options(options))


def encode_ids(ids: bytes | Iterable[int]) -> bytes:
    """Token ids as the wire has them, uint32 LE. Raises InvalidValue."""
    if isinstance(ids, bytes | bytearray | memoryview):
        return bytes(ids)
    values = list(ids)
    try:
        packed = array("I", values)
    except (TypeError, OverflowError):
        raise InvalidValue(
            f"token id {_first_bad(values)!r}: not an integer from 0 to 2**32-1", param="prompt"
        ) from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _first_bad(values: list[Any]) -> object:
    for value in values:
        try:
            array("I", [value])
        except (TypeError, OverflowError):
            return value
    return values


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r}; known: {', '.join(Options.__annotations__)}")
    stop = options.get("stop") or ()
    return {**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}


def _message(message: ChatMessage | Mapping[str, str]) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        raise InvalidValue(f"chat message {message!r}: not an object with role and content", param="messages")
    return ChatMessage(message["role"], message["content"])
