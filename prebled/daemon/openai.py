"""Reads requests in OpenAI's wire form and translates them into the doors' common form.

The rule: no field is silently ignored. A field has an effect; or it is mere metadata, which OpenAI ignores too; or
prebled does not support it yet and it stands at the value that changes nothing; or the request is refused with a 400
that names it. `null` means absent. Ranges are `inputs`' business, answers are `sse`'s.
"""

from __future__ import annotations

from array import array
from typing import Any, TypeVar

import msgspec

from prebled.daemon.gateway import GenerateInput
from prebled.daemon.inputs import shown
from prebled.daemon.openai_errors import decode_problem
from prebled.daemon.openai_fields import (
    NEUTRAL,
    NEUTRAL_IN_TURNS,
    BaseRequest,
    ChatRequest,
    ChatTurn,
    CompletionRequest,
    Json,
)
from prebled.errors import InvalidValue, Unsupported
from prebled.messages import ChatMessage


class Call(msgspec.Struct, frozen=True):
    """A request translated: what is asked for, and how it is to be answered."""

    input: GenerateInput
    stream: bool
    include_usage: bool


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)
_Body = TypeVar("_Body", ChatRequest, CompletionRequest)


def read_chat(body: bytes, request_id: str) -> Call:
    """Translate a chat request. Raises RequestError."""
    request = _decode(_CHAT, body)
    _refuse(request, NEUTRAL | {"logprobs": (False,)})
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        given = f"max_tokens {request.max_tokens} and max_completion_tokens {request.max_completion_tokens}"
        raise InvalidValue(f"{given} differ; give one", param="max_tokens")
    turns = tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(request.messages))
    return _call(request, request_id, messages=turns, max_tokens=limits.pop() if limits else None)


def read_completion(body: bytes, request_id: str, default_max_tokens: int) -> Call:
    """Translate a completion request. `default_max_tokens` applies where it names none. Raises RequestError."""
    request = _decode(_COMPLETION, body)
    _refuse(request, NEUTRAL | {"logprobs": ()})
    max_tokens = default_max_tokens if request.max_tokens is None else request.max_tokens
    text, tokens = _prompt(request.prompt)
    return _call(request, request_id, prompt=text, prompt_tokens=tokens, max_tokens=max_tokens)


def _decode(decoder: msgspec.json.Decoder[_Body], body: bytes) -> _Body:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise decode_problem(error, body) from error


def _refuse(fields: msgspec.Struct, neutral: dict[str, tuple[object, ...]], at: str = "") -> None:
    """Refuse what is not supported and not neutral."""
    for name, values in neutral.items():
        value = getattr(fields, name, None)
        if value is not None and value not in values:
            raise Unsupported(f"{at}{name}: {shown(value)} is not supported", param=f"{at}{name}")


def _call(request: BaseRequest, request_id: str, **prompt: Any) -> Call:
    """`prompt`: the prompt in its form, and `max_tokens`; the rest is the same for all."""
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    sampling = {
        name: value
        for name in ("model", "temperature", "top_p", "top_k", "min_p", "ignore_eos", "seed", "cache_salt")
        if (value := getattr(request, name)) is not None
    }
    made = GenerateInput(stop=stop, request_id=request_id, **sampling, **prompt)
    return Call(made, stream=bool(request.stream), include_usage=_include_usage(request))


def _include_usage(request: BaseRequest) -> bool:
    options = {name: value for name, value in (request.stream_options or {}).items() if value is not None}
    include = options.pop("include_usage", False)
    if not isinstance(include, bool):
        raise InvalidValue(f"stream_options.include_usage: {shown(include)} is no boolean", param="stream_options")
    if options.pop("include_obfuscation", False) is not False or options:
        unknown = next(iter(options), "include_obfuscation")
        raise Unsupported(f"stream_options.{unknown} is not supported", param=f"stream_options.{unknown}")
    if request.stream_options and not request.stream:
        raise InvalidValue("stream_options: allowed only where stream is true", param="stream_options")
    return include


def _message(turn: ChatTurn, at: str) -> ChatMessage:
    _refuse(turn, NEUTRAL_IN_TURNS, f"{at}.")
    if turn.content is None:
        raise InvalidValue(f"{at}.content: is missing", param=f"{at}.content")
    if isinstance(turn.content, str):
        return ChatMessage(turn.role, turn.content)
    parts = [_text_of_part(part, f"{at}.content[{index}]") for index, part in enumerate(turn.content)]
    return ChatMessage(turn.role, "".join(parts))


def _text_of_part(part: Json, at: str) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise Unsupported(f"{at}.type: {shown(kind)} is not supported, only text is", param=f"{at}.type")
    if not isinstance(text, str):
        raise InvalidValue(f"{at}.text: {shown(text)} is no string", param=f"{at}.text")
    for name, value in part.items():
        if name not in ("type", "text") and value is not None:
            raise Unsupported(f"{at}.{name}: {shown(value)} is not supported", param=f"{at}.{name}")
    return text


def _prompt(prompt: str | list[str | int | list[int]]) -> tuple[str | None, bytes | None]:
    """Text, or token ids as uint32 LE."""
    if isinstance(prompt, str):
        return prompt, None
    first: str | int | list[int] = prompt[0] if prompt else []
    if isinstance(first, int):
        return None, _tokens(prompt)
    if len(prompt) > 1:
        problem = f"prompt: a list of {len(prompt)} prompts is not supported; send one request for each"
        raise Unsupported(problem, param="prompt")
    return (first, None) if isinstance(first, str) else (None, _tokens(first))


def _tokens(ids: list[Any]) -> bytes:
    try:
        return array("I", ids).tobytes()
    except (OverflowError, TypeError) as error:
        worst = next(token for token in ids if not isinstance(token, int) or not 0 <= token < 2**32)
        raise InvalidValue(f"prompt: {shown(worst)} is no token id", param="prompt") from error
