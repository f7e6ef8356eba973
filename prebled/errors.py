"""The one tree of errors, blame first: the caller's fault, our overload, a worker's fault, our bug.

Every class knows its wire code, its HTTP status and its OpenAI `type`. Foreign exceptions are translated at the file
that calls foreign code; `from_wire` turns what the daemon sent back into the same class on the client's side.
"""

from __future__ import annotations

from typing import ClassVar


class PrebledError(Exception):
    """Base of all errors that cross a border of prebled. Not raised itself.

    `message` names the offending value; `param` the field it came in, if one did; `retry_after_s` is set where a
    later try may succeed.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


# The caller's fault.


class RequestError(PrebledError):
    """The request can never succeed as it is."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"


class InvalidValue(RequestError):
    """A field has the wrong type or is out of range."""

    code = "invalid_value"


class Unsupported(RequestError):
    """A field is well formed, but prebled does not support it yet."""

    code = "unsupported_parameter"


class PromptTooLong(RequestError):
    """Prompt, or prompt plus max_tokens, exceeds what any worker can hold."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """The request names a model that is not served here."""

    code = "model_not_found"
    status = 404


class NotFound(RequestError):
    """An unknown path, or an id that nobody remembers."""

    code = "not_found"
    status = 404


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class PayloadTooLarge(RequestError):
    """A request body or frame beyond the bound."""

    code = "payload_too_large"
    status = 413


class Unauthorized(RequestError):
    """No API key, or an unknown one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class ProtocolError(RequestError):
    """A frame that is not of the native protocol: not decodable, of an unknown type, or cut short."""

    code = "protocol_error"


# Our overload.


class Saturated(PrebledError):
    """Too many requests are waiting; try again after `retry_after_s`."""

    code = "saturated"
    status = 429
    type = "rate_limit_error"


class Unavailable(PrebledError):
    """Nothing can serve now: no worker is ready."""

    code = "no_worker_ready"
    status = 503
    type = "service_unavailable_error"


class Draining(Unavailable):
    """The daemon is going away and accepts nothing new."""

    code = "draining"


class SlowReader(PrebledError):
    """The reader of a stream fell further behind than its bound; the stream was ended."""

    code = "slow_reader"
    status = 499
    type = "invalid_request_error"


# A worker's fault.


class WorkerFailed(PrebledError):
    """The worker could not finish the request, and no other could continue it."""

    code = "worker_failed"
    status = 502


class EngineFailed(WorkerFailed):
    """The engine under a worker died or refused to start."""

    code = "engine_failed"


# Ours, or the way between.


class InternalError(PrebledError):
    """A bug in prebled."""


class ConnectionLost(PrebledError):
    """The connection to the daemon broke or could not be made (client side only)."""

    code = "connection_lost"
    status = 503


class SettingsError(PrebledError):
    """A setting is unknown, malformed or impossible; start-up stops."""

    code = "bad_settings"
    type = "invalid_request_error"


def _tree(cls: type[PrebledError]) -> list[type[PrebledError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _tree(sub))]


BY_CODE: dict[str, type[PrebledError]] = {cls.code: cls for cls in reversed(_tree(PrebledError))}


def from_wire(code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> PrebledError:
    """The error of class `code`; an unknown code (a newer daemon's) becomes `InternalError` with the code named."""
    cls = BY_CODE.get(code)
    if cls is None:
        return InternalError(f"{code}: {message}", param=param, retry_after_s=retry_after_s)
    if cls is PrebledError:
        cls = InternalError
    return cls(message, param=param, retry_after_s=retry_after_s)
