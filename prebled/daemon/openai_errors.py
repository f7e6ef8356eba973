"""Errors in OpenAI's shape: what is wrong with a body that does not decode, and the envelope that carries any error.

The rule: an error names the field it came in (`param`) and the value.
"""

from __future__ import annotations

import math
import re

import msgspec

from prebled.daemon.inputs import shown
from prebled.errors import InvalidValue, PrebledError, RequestError, Unsupported

_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def decode_problem(error: Exception, body: bytes) -> RequestError:
    """The error to answer with where `body` is no JSON, or JSON of another form than was asked for."""
    if isinstance(error, RecursionError):
        return RequestError("the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return RequestError(f"the body is no valid JSON: byte {_first_bad_byte(body)} is no UTF-8")
    if not isinstance(error, msgspec.ValidationError):
        where = "" if "byte" in str(error) else f" (byte {len(body)}, its end)"
        return RequestError(f"the body is no valid JSON: {error}{where}")
    matched = _PROBLEM.fullmatch(str(error))
    assert matched is not None  # the pattern takes any text
    what, path = matched["what"], matched["path"] or ""
    if unknown := _UNKNOWN_FIELD.fullmatch(what):
        param = f"{path}.{unknown['name']}" if path else unknown["name"]
        return Unsupported(f"{param}: no such field is known here", param=param)
    if missing := _MISSING_FIELD.fullmatch(what):
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidValue(f"{param}: is missing", param=param)
    if not path:
        return RequestError(f"the body: {what}")
    return InvalidValue(f"{path}: {_shown_at(body, path)}{what}", param=path)


def envelope(error: PrebledError) -> bytes:
    """`{"error": {...}}` as JSON."""
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


def retry_headers(error: PrebledError, default_retry_after_s: float) -> list[tuple[bytes, bytes]]:
    """For overload, when to come again: in whole seconds for everybody, in milliseconds for OpenAI's SDK. None for
    other errors."""
    if error.status not in (429, 503):
        return []
    seconds = default_retry_after_s if error.retry_after_s is None else error.retry_after_s
    return [
        (b"retry-after", b"%d" % max(math.ceil(seconds), 1)),
        (b"retry-after-ms", b"%d" % max(math.ceil(seconds * 1000), 1)),
        (b"x-should-retry", b"true"),
    ]


def _first_bad_byte(body: bytes) -> int:
    """The decoder counts from the start of the string it is in."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _shown_at(body: bytes, path: str) -> str:
    """The value that msgspec means by a path such as `messages[0].content`; empty if the body as a whole cannot be
    decoded, since something is wrong behind this place too."""
    try:
        value = msgspec.json.decode(body)
        for index, name in _STEP.findall(path):
            if name == "...":  # the values of a map
                break
            value = value[int(index)] if index else value[name]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return ""
    return f"{shown(value)}: "
