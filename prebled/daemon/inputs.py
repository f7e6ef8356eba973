"""Checks the values of a request, for both front doors alike.

The rule: what passes here cannot harm an engine by its values (an id outside the vocabulary kills SGLang's scheduler),
and what does not is refused with the field and the value in the message. Types are the doors' business; whether there
is room for the request is the scheduler's.
"""

from __future__ import annotations

import re
import reprlib
import secrets

import numpy as np

from prebled.daemon.gateway import GenerateInput
from prebled.errors import InvalidValue
from prebled.messages import ChatMessage

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_SALT_CHARS = 256
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 2**30
"""Engines keep it in 32 bits, and SGLang's own value for "all" is this."""

MAX_TOKENS = 2**31 - 1
ROLES = ("system", "developer", "user", "assistant", "tool")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SHOWN_CHARS = 80

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 3, _SHOWN_CHARS


def check_input(request: GenerateInput, vocab_size: int) -> None:
    """Raises InvalidValue for the first value out of its range. `vocab_size`: of the model."""
    _check_prompt(request, vocab_size)
    if request.max_tokens is not None and not 1 <= request.max_tokens <= MAX_TOKENS:
        raise _bad("max_tokens", request.max_tokens, "must be at least 1, and below 2 ** 31")
    _check_sampling(request)
    _check_stop(request.stop)
    if len(request.cache_salt) > MAX_SALT_CHARS:
        raise _bad("cache_salt", request.cache_salt, f"must have at most {MAX_SALT_CHARS} characters")
    _check_text(request.cache_salt, "cache_salt")


def request_id_or_new(wanted: str) -> str:
    """A client's own request id if it can stand in a header (1 to 128 printable ASCII characters without spaces),
    otherwise a new random one."""
    return wanted if _REQUEST_ID.fullmatch(wanted) else f"req-{secrets.token_hex(12)}"


def shown(value: object) -> str:
    """A value as it appears in a message: its repr, cut where it is long, in a time that does not grow with it."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]!r}..."
    return _short.repr(value)


def _check_prompt(request: GenerateInput, vocab_size: int) -> None:
    given = (request.prompt, request.prompt_tokens, request.messages)
    if sum(form is not None for form in given) != 1:
        raise InvalidValue("exactly one of prompt, prompt_tokens and messages must be given", param="prompt")
    if request.prompt is not None:
        if not request.prompt:
            raise InvalidValue("prompt: is empty", param="prompt")
    elif request.messages is not None:
        _check_messages(request.messages)
    elif request.prompt_tokens is not None:
        _check_tokens(request.prompt_tokens, vocab_size)


def _check_tokens(tokens: bytes, vocab_size: int) -> None:
    if not tokens:
        raise InvalidValue("prompt: is empty", param="prompt")
    if len(tokens) % 4:
        raise InvalidValue(f"prompt: {len(tokens)} bytes are no whole number of 4-byte token ids", param="prompt")
    worst = int(np.frombuffer(tokens, dtype="<u4").max())
    if worst >= vocab_size:
        raise _bad("prompt", worst, f"is no token id of the model, which has {vocab_size}")


def _check_messages(messages: tuple[ChatMessage, ...]) -> None:
    if not messages:
        raise InvalidValue("messages: is empty", param="messages")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise _bad(f"messages[{index}].role", message.role, f"must be one of {', '.join(ROLES)}")


def _check_sampling(request: GenerateInput) -> None:
    # Comparisons are written so that NaN fails them.
    if not 0.0 <= request.temperature <= MAX_TEMPERATURE:
        raise _bad("temperature", request.temperature, f"must be from 0 to {MAX_TEMPERATURE:g}")
    if not 0.0 < request.top_p <= 1.0:
        raise _bad("top_p", request.top_p, "must be above 0 and at most 1")
    if request.top_k != -1 and not 1 <= request.top_k <= MAX_TOP_K:
        raise _bad("top_k", request.top_k, f"must be -1 (off) or from 1 to {MAX_TOP_K}")
    if not 0.0 <= request.min_p <= 1.0:
        raise _bad("min_p", request.min_p, "must be from 0 to 1")
    if request.seed is not None and not -(2**63) <= request.seed < 2**63:
        raise _bad("seed", request.seed, "must fit into 64 bits with a sign")


def _check_stop(stop: tuple[str, ...]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidValue(f"stop: {len(stop)} strings are more than {MAX_STOP_STRINGS}", param="stop")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise _bad("stop", text, f"must have 1 to {MAX_STOP_CHARS} characters")


def _check_text(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _bad(param, text, "is no valid Unicode") from None


def _bad(param: str, value: object, rule: str) -> InvalidValue:
    return InvalidValue(f"{param}: {shown(value)} {rule}", param=param)
