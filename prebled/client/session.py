"""The client's side of one connection without the socket: bytes in, state of each call and bytes to send out.

Rule: every call ends exactly once, with a finish reason, a reply or an error; what arrived before the end can be read
first. A call whose reader falls too far behind is ended alone; the connection's other calls do not notice. Nothing
here waits: whoever owns the socket passes a `wake` that is called after each change of a call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import msgspec

from prebled.core.decisions import Explanation
from prebled.errors import ConnectionLost, InvalidValue, PrebledError, ProtocolError, SlowReader, from_wire
from prebled.messages import (
    FROM_DAEMON,
    Cancel,
    DaemonStatus,
    DecisionReply,
    Error,
    Finished,
    FinishReason,
    FromDaemon,
    Generate,
    GetDecision,
    GetStatus,
    Started,
    StatusReply,
    Text,
    Usage,
)
from prebled.wire import FrameSplitter, pack

UNREAD_TOKENS = 16_384
"""Output tokens that one call may hold unread, unless told otherwise: some MB, and more than most answers have."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Largest frame taken from a daemon; real ones are a few KB."""


Question: TypeAlias = GetStatus | GetDecision
"""What is answered with one message."""

Reply = TypeVar("Reply", DaemonStatus, Explanation)
"""What is in that message."""


class TokenChunk(msgspec.Struct, frozen=True):
    """More of an answer. `text` may lag behind `tokens` by an unfinished character or a possible stop string."""

    text: str
    tokens: tuple[int, ...]


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, collected. `reason`: `stop` or `length`."""

    request_id: str
    text: str
    tokens: tuple[int, ...]
    reason: FinishReason
    usage: Usage


class Call:
    """One request on a connection: what arrived for it and was not read yet, and how it ended, if it did."""

    __slots__ = ("chunks", "error", "is_closed", "number", "reason", "reply", "request_id", "unread", "usage", "wake")

    def __init__(self, number: int, wake: Callable[[], None]) -> None:
        self.number = number
        self.wake = wake
        self.request_id = ""
        self.chunks: deque[TokenChunk] = deque()
        self.unread = 0
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.reply: DaemonStatus | Explanation | None = None
        self.error: PrebledError | None = None
        self.is_closed = False

    @property
    def has_ended(self) -> bool:
        """Nothing more will arrive."""
        return self.is_closed or self.error is not None or self.reason is not None or self.reply is not None

    def take_nowait(self) -> TokenChunk | None:
        """The next chunk; None if there is none now. Raises the error that ended the call once all chunks are read."""
        if self.chunks and not self.is_closed:
            chunk = self.chunks.popleft()
            self.unread -= _weight(chunk.tokens)
            return chunk
        if self.error is not None and not self.is_closed:
            raise self.error
        return None

    def answer(self, chunks: list[TokenChunk]) -> Answer:
        """`chunks` as one answer, after the end. Raises RuntimeError if the call was closed before."""
        if self.reason is None or self.usage is None:
            raise RuntimeError("the stream was closed before its end: there is no whole answer")
        text = "".join(chunk.text for chunk in chunks)
        tokens = tuple(token for chunk in chunks for token in chunk.tokens)
        return Answer(self.request_id, text, tokens, self.reason, self.usage)

    def receive(self, message: FromDaemon) -> None:
        """Book one message of this call."""
        match message:
            case Text(_, text, tokens):
                self.chunks.append(TokenChunk(text, tokens))
                self.unread += _weight(tokens)
            case Started(_, request_id):
                self.request_id = request_id
            case Finished(_, reason, usage):
                self.reason, self.usage = reason, usage
            case Error(_, code, text, param, retry_after_s):
                self.error = from_wire(code, text, param=param, retry_after_s=retry_after_s)
            case StatusReply(_, reply) | DecisionReply(_, reply):
                self.reply = reply


class CallView:
    """What a stream shows of its call, in either client."""

    _call: Call

    @property
    def request_id(self) -> str:
        """The id that `x-request-id` and `prebled explain` use."""
        return self._call.request_id

    @property
    def reason(self) -> FinishReason | None:
        """Why the answer ended; None until it is read to its end."""
        return None if self._call.chunks else self._call.reason

    @property
    def usage(self) -> Usage | None:
        """Token counts; None until the answer is read to its end."""
        return None if self._call.chunks else self._call.usage


def _weight(tokens: tuple[int, ...]) -> int:
    return len(tokens) or 1  # a chunk of text alone takes room as well


class Session:
    """All calls of one connection."""

    def __init__(self, unread_tokens: int = UNREAD_TOKENS) -> None:
        self._unread_tokens = unread_tokens
        self._splitter = FrameSplitter(MAX_FRAME_BYTES)
        self._calls: dict[int, Call] = {}
        self._last_number = 0
        self._lost: PrebledError | None = None

    @property
    def is_lost(self) -> bool:
        """The connection is of no more use."""
        return self._lost is not None

    def open(self, request: Generate | Question, wake: Callable[[], None]) -> tuple[Call, bytes]:
        """A new call and the frame that asks for it. Raises InvalidValue for what cannot be encoded, and the error
        that ended the connection."""
        if self._lost is not None:
            raise _copy(self._lost)
        self._last_number += 1
        call = Call(self._last_number, wake)
        try:
            frame = pack(msgspec.structs.replace(request, call=call.number))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidValue(f"the request cannot be encoded: {error}") from error
        self._calls[call.number] = call
        return call, frame

    def close(self, call: Call) -> bytes:
        """Give a call up. The frame that tells the daemon; empty if the call had ended."""
        is_open = self._calls.pop(call.number, None) is not None
        call.is_closed = True
        call.wake()
        return pack(Cancel(call.number)) if is_open and self._lost is None else b""

    def feed(self, data: bytes) -> bytes:
        """Book what came; the bytes to send in turn (mostly none). Raises PrebledError if the connection itself is at
        fault: the caller is to `fail` the session and drop the connection."""
        cancels = b""
        for payload in self._splitter.feed(data):
            cancels += self._receive(_decode(payload))
        return cancels

    def fail(self, error: PrebledError) -> None:
        """The connection is lost: every open call ends with (a copy of) `error`. Only the first error counts."""
        if self._lost is not None:
            return
        self._lost = error
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.error = _copy(error)
            call.wake()

    def _receive(self, message: FromDaemon) -> bytes:
        if message.call is None:
            raise from_wire(message.code, message.message, param=message.param, retry_after_s=message.retry_after_s)
        call = self._calls.get(message.call)
        if call is None:
            return b""  # it was closed while this was under way
        call.receive(message)
        cancel = b""
        if not call.has_ended and call.unread > self._unread_tokens:
            call.error = SlowReader(f"{call.unread} tokens were not read; at most {self._unread_tokens} are kept")
            cancel = pack(Cancel(call.number))
        if call.has_ended:
            del self._calls[call.number]
        call.wake()
        return cancel


def lost(address: object, why: str) -> ConnectionLost:
    """The one wording of a broken connection."""
    return ConnectionLost(f"connection to {address} lost: {why}")


def cannot_connect(address: object, error: OSError) -> ConnectionLost:
    """The one wording of a connection that could not be made."""
    return ConnectionLost(f"cannot connect to {address}: {error.strerror or error} (is the daemon running?)")


def client_closed(address: object) -> ConnectionLost:
    """What calls get whose own client was closed."""
    return ConnectionLost(f"the client of {address} was closed")


def no_answer(address: object, timeout_s: float) -> ConnectionLost:
    """The one wording of a daemon that does not react."""
    return ConnectionLost(f"no answer from {address} within {timeout_s:g} s")


def _decode(payload: bytes) -> FromDaemon:
    try:
        message: FromDaemon = FROM_DAEMON.decode(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the daemon sent a frame that is not of this protocol: {error}") from error
    return message


def _copy(error: PrebledError) -> PrebledError:
    # One instance raised in many tasks would gather all their tracebacks.
    return type(error)(error.message, param=error.param, retry_after_s=error.retry_after_s)
