"""Writes answers in OpenAI's wire form: one JSON object, or server-sent events.

Events are put together from bytes encoded once per request, since a chat front end gets one for every token: only the
new text is encoded each time. The rule: usage always tells the cached tokens, and 0 is told as 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgspec

from prebled.daemon.openai_errors import envelope
from prebled.errors import PrebledError
from prebled.messages import FinishReason, Usage

_encode = msgspec.json.Encoder().encode
_END = b"}\n\n"
_DONE = b"data: [DONE]\n\n"


class AnswerWriter(ABC):
    """One request's answer. `created`: unix seconds. Subclasses say what their endpoint's objects hold."""

    object_name: ClassVar[str]
    chunk_name: ClassVar[str]
    first_head: ClassVar[bytes]
    delta_head: ClassVar[bytes]  # the new text stands between this and the next
    delta_tail: ClassVar[bytes]

    def __init__(self, request_id: str, model: str, created: int, *, include_usage: bool) -> None:
        self._fields: dict[str, Any] = {"id": request_id, "created": created, "model": model}
        fields = self._fields | {"object": self.chunk_name}
        self._open = b"data: " + _encode(fields)[:-1] + b',"choices":'
        self._include_usage = include_usage
        # OpenAI has the key in every chunk once usage was asked for.
        close = (b',"usage":null' if include_usage else b"") + _END
        self._first_head = self._open + self.first_head
        self._delta_head = self._open + self.delta_head
        self._delta_tail = self.delta_tail + close
        self._close = close

    def first(self, text: str) -> bytes:
        """The first event; for a chat it tells the role."""
        return b"".join((self._first_head, _encode(text), self._delta_tail))

    def delta(self, text: str) -> bytes:
        """More text."""
        return b"".join((self._delta_head, _encode(text), self._delta_tail))

    def end(self, reason: FinishReason, usage: Usage) -> bytes:
        """The last events: why it ended, what it took if that was asked for, and the end mark."""
        events = [self._open, _encode([self._last_choice(reason)]), self._close]
        if self._include_usage:
            events += [self._open, b'[],"usage":', _encode(_usage(usage)), _END]
        return b"".join([*events, _DONE])

    def failure(self, error: PrebledError) -> bytes:
        """The last event of an answer that fails midway; no end mark follows."""
        return b"data: " + envelope(error) + b"\n\n"

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> bytes:
        """The answer as one object."""
        choice = self._choice(text) | {"index": 0, "logprobs": None, "finish_reason": reason}
        return _encode(self._fields | {"object": self.object_name, "choices": [choice], "usage": _usage(usage)})

    @abstractmethod
    def _last_choice(self, reason: FinishReason) -> dict[str, Any]: ...

    @abstractmethod
    def _choice(self, text: str) -> dict[str, Any]: ...


class ChatWriter(AnswerWriter):
    """Answers of /v1/chat/completions."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    first_head = b'[{"index":0,"delta":{"role":"assistant","content":'
    delta_head = b'[{"index":0,"delta":{"content":'
    delta_tail = b'},"logprobs":null,"finish_reason":null}]'

    def _last_choice(self, reason: FinishReason) -> dict[str, Any]:
        return {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}

    def _choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}


class CompletionWriter(AnswerWriter):
    """Answers of /v1/completions."""

    object_name = "text_completion"
    chunk_name = "text_completion"
    first_head = b'[{"index":0,"text":'
    delta_head = first_head
    delta_tail = b',"logprobs":null,"finish_reason":null}]'

    def _last_choice(self, reason: FinishReason) -> dict[str, Any]:
        return {"index": 0, "text": "", "logprobs": None, "finish_reason": reason}

    def _choice(self, text: str) -> dict[str, Any]:
        return {"text": text}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
