"""Reads what a native client sent: the request, or the error that says what is wrong with it and with which request.

Rule: wherever the call's number can still be read, the error is for that call alone and the connection goes on; only a
frame that nobody can be named for is the connection's end. Ranges of values are not judged here.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any, get_args

import msgspec

from prebled.daemon.gateway import GenerateInput
from prebled.errors import InvalidValue, PayloadTooLarge, PrebledError, ProtocolError
from prebled.messages import TO_DAEMON, Error, Generate, ToDaemon

HEAD_BYTES = 64
"""Enough of a frame to read its tag and its call number from."""

_KINDS: dict[str, type[msgspec.Struct]] = {kind.__name__: kind for kind in get_args(ToDaemon)}
_PATH = re.compile(r"(?P<why>.*) - at `\$(?P<path>[\[\]0-9.]+)`$", re.DOTALL)
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80
# How many bytes follow the first byte of a msgpack integer.
_INT_BYTES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def read_request(payload: bytes) -> ToDaemon | Error:
    """The request in a frame, or the Error to answer with (its `call` is None if not even that could be read)."""
    try:
        request: ToDaemon = TO_DAEMON.decode(payload)
    except msgspec.ValidationError as error:
        return _explain(payload, str(error))
    except (ValueError, RecursionError) as error:
        return wire_error(peek_call(payload), ProtocolError(f"a frame that is not msgpack: {error}"))
    return request


def too_long(head: bytes, length: int, max_frame_bytes: int) -> Error:
    """The Error for a frame beyond the bound, of which `head` are the first bytes."""
    message = f"a frame of {length} bytes; at most {max_frame_bytes} are taken"
    return wire_error(peek_call(head), PayloadTooLarge(message))


def wire_error(call: int | None, error: PrebledError) -> Error:
    """`error` as the wire has it."""
    return Error(call, error.code, error.message, error.param, error.retry_after_s)


def to_input(request: Generate) -> GenerateInput:
    """The request in the doors' common form. Raises InvalidValue unless exactly one form of prompt is there."""
    forms = {"prompt": request.prompt, "prompt_tokens": request.prompt_tokens, "messages": request.messages}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise InvalidValue(f"exactly one of {', '.join(forms)} is wanted, given: {what}", param="prompt")
    if request.prompt_tokens is not None and len(request.prompt_tokens) % 4:
        size = len(request.prompt_tokens)
        raise InvalidValue(f"prompt_tokens of {size} bytes: not a whole number of uint32", param="prompt_tokens")
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name != "call"}
    return GenerateInput(**fields)


def peek_call(head: bytes) -> int | None:
    """The call number of a frame whose rest is missing or spoilt; None if the beginning is so as well."""
    tag = 3 if head[:1] == b"\xdc" else 1  # array16 has two bytes of length
    if len(head) <= tag or not (tag == 3 or 0x92 <= head[0] <= 0x9F) or not 0xA0 <= head[tag] <= 0xBF:
        return None  # not an array of two or more, or its tag not a short string
    number = tag + 1 + (head[tag] & 0x1F)
    if number >= len(head):
        return None
    end = number + 1 + _INT_BYTES.get(head[number], 0)
    try:
        call = msgspec.msgpack.decode(head[number:end], type=int)
    except (ValueError, RecursionError):
        return None
    return call


def _explain(payload: bytes, why: str) -> Error:
    """What is wrong with well-formed msgpack that is no request."""
    call = peek_call(payload)
    try:
        raw = msgspec.msgpack.decode(payload)
    except (ValueError, TypeError, RecursionError):
        raw = None
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], str):
        return wire_error(call, ProtocolError(f"a frame that is no tagged message: {why}"))
    kind = _KINDS.get(raw[0])
    if kind is None:
        return wire_error(call, ProtocolError(f"unknown frame {_SHOWN.repr(raw[0])}; known: {', '.join(_KINDS)}"))
    found = _PATH.match(why)
    path = [int(step) for step in re.findall(r"\[(\d+)\]", found["path"])] if found else []
    if found is None or call is None or not 0 < path[0] <= len(kind.__struct_fields__):
        return wire_error(call, ProtocolError(f"{raw[0]}: {why}"))
    param = kind.__struct_fields__[path[0] - 1]
    place = param + "".join(f"[{step}]" for step in path[1:])
    message = f"{raw[0]}.{place} = {_SHOWN.repr(_at(raw, path))}: {found['why']}"
    return wire_error(call, InvalidValue(message, param=param))


def _at(raw: Any, path: list[int]) -> Any:
    for step in path:
        raw = raw[step]
    return raw
