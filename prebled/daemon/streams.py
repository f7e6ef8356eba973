"""One request's answer on its way from the runtime to a front door.

The runtime pushes tokens as they come and never waits; the door takes what has piled up since it last asked, merged
into one update, so that a door that falls behind does less work per token. The rule: an answer ends once, well or
badly; a reader that lags by more than `stream_tokens` tokens ends its own stream and no other. Not known here: workers,
runs and sockets. Everything is called from one event loop.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from prebled.core.types import RequestId
from prebled.daemon.gateway import StreamUpdate
from prebled.daemon.text import TextAssembler
from prebled.errors import SlowReader
from prebled.messages import FinishReason, Usage


class RequestStream:
    """Implements `gateway.GenerationStream`; `push`, `finish` and `fail` are the runtime's side.

    `on_close` is called at most once, when the stream ends before the request has: its reader gave up (`aclose`) or
    was too slow. It must abort the request.
    """

    def __init__(
        self, request_id: RequestId, assembler: TextAssembler, *, stream_tokens: int, on_close: Callable[[], None]
    ) -> None:
        self._request_id = request_id
        self._assembler = assembler
        self._stream_tokens = stream_tokens
        self._on_close = on_close
        self._sent = array("I")
        self._texts: list[str] = []
        self._unread = 0  # tokens at the end of `_sent` that the reader has not fetched
        self._stopped = False
        self._ended = False
        self._check_pending = False
        self._last: tuple[FinishReason, Usage] | None = None
        self._error: Exception | None = None
        self._failed = asyncio.Event()
        self._waiter: asyncio.Future[None] | None = None

    # --- the runtime's side ---

    @property
    def sent_tokens(self) -> Sequence[int]:
        """All output tokens that belong to the answer so far (an array of uint32), read or not: what a run elsewhere
        continues from."""
        return self._sent

    @property
    def has_ended(self) -> bool:
        """Whether it was finished, failed or given up; what is pushed then is dropped."""
        return self._ended

    @property
    def error(self) -> Exception | None:
        """Why it failed; None while it has not, and if its reader gave it up."""
        return self._error

    def push(self, tokens: Sequence[int]) -> bool:
        """More output tokens. True if they completed a stop string: the run is to be aborted and `finish` called; the
        tokens behind the one that completed it are dropped."""
        if self._ended or self._stopped:
            return self._stopped
        text, self._stopped, used = self._assembler.push(tokens)
        self._sent.extend(tokens[:used])
        self._unread += used
        if text:
            self._texts.append(text)
        if self._unread > self._stream_tokens and not self._check_pending:
            # Not at once: a reader who was woken just now has not had its turn yet.
            self._check_pending = True
            asyncio.get_running_loop().call_soon(self._check_reader)
        self._wake()
        return self._stopped

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """The request ended well. After a stop string the reason is `stop`, whatever the run made of its end, and
        only the tokens up to the string count."""
        if self._ended:
            return
        self._ended = True
        self._texts.append(self._assembler.finish())
        if self._stopped:
            reason, usage = "stop", msgspec.structs.replace(usage, completion_tokens=len(self._sent))
        self._last = (reason, usage)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The request ended badly: the reader gets what is there, then `error`."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._failed.set()
        self._wake()

    # --- the door's side ---

    @property
    def request_id(self) -> RequestId:
        """See `GenerationStream`."""
        return self._request_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamUpdate:
        while not (self._unread or self._ended):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._unread or self._last is not None:
            return self._take()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """See `GenerationStream`."""
        is_running, self._ended = not self._ended, True
        self._drop_unread()
        self._last = None
        self._wake()
        if is_running:
            self._on_close()

    async def wait_failed(self) -> Exception:
        """See `GenerationStream`."""
        await self._failed.wait()
        assert self._error is not None
        return self._error

    # --- inside ---

    def _take(self) -> StreamUpdate:
        tokens = tuple(self._sent[len(self._sent) - self._unread :])
        text = "".join(self._texts)
        reason, usage = self._last or (None, None)
        self._drop_unread()
        self._last = None
        return StreamUpdate(text, tokens, reason, usage)

    def _drop_unread(self) -> None:
        self._unread = 0
        self._texts = []

    def _check_reader(self) -> None:
        self._check_pending = False
        if self._ended or self._unread <= self._stream_tokens:
            return
        message = (
            f"the reader is {self._unread} tokens behind, more than the {self._stream_tokens} that are kept for it"
        )
        self.fail(SlowReader(message))
        self._drop_unread()
        self._on_close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
