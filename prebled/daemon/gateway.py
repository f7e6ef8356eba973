"""The seams of the runtime: towards the front doors (HTTP, native socket) before it, and the fabric behind it.

A door translates its wire form into `GenerateInput`, calls `Gateway.generate` and translates the updates back. It
tokenises nothing, schedules nothing and holds no state of a request but the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from prebled.core.decisions import Explanation
from prebled.core.types import RequestId, RunId, WorkerId
from prebled.messages import ChatMessage, DaemonStatus, FinishReason, Submit, Usage


class GenerateInput(msgspec.Struct, frozen=True):
    """One request in the doors' common form. Exactly one prompt form is set: `prompt` (text), `prompt_tokens` (uint32
    LE bytes) or `messages`. Ranges are checked by `Gateway.generate`; types are the door's business.

    `max_tokens` None: as many as fit. `request_id` is the client's own `x-request-id` ("" if it gave none): it is kept
    if it is well formed and not in use, otherwise a new id is made.
    """

    prompt: str | None = None
    prompt_tokens: bytes | None = None
    messages: tuple[ChatMessage, ...] | None = None
    model: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    cache_salt: str = ""
    request_id: str = ""


class StreamUpdate(msgspec.Struct, frozen=True):
    """More of an answer. `text` may lag behind `tokens` by an unfinished character or a possible stop string. The last
    update, and only it, has `reason` and `usage`."""

    text: str
    tokens: tuple[int, ...] = ()
    reason: FinishReason | None = None
    usage: Usage | None = None


class GenerationStream(Protocol):
    """An answer in the making: an async iterator that ends after the update with a `reason`.

    Iterating raises `PrebledError` where the request fails midway (also `SlowReader`, when updates were not fetched in
    time; that is raised even from a pending `anext`). Updates that pile up unread are merged into one.
    """

    @property
    def request_id(self) -> RequestId: ...

    def __aiter__(self) -> AsyncIterator[StreamUpdate]: ...

    async def __anext__(self) -> StreamUpdate: ...

    async def aclose(self) -> None:
        """Give up: aborts on the engine at once if the request still runs. Safe to call always, any number of times."""

    async def wait_failed(self) -> Exception:
        """Wait until the request fails (slow reader, lost worker, ...) and give the error; never returns otherwise.
        For a door whose write is stuck and who must learn that its reader is too slow."""


class RunSender(Protocol):
    """What the runtime needs of the fabric."""

    def submit_nowait(self, worker_id: WorkerId, submit: Submit) -> bool:
        """Queue a run for a worker; False if the worker is not there."""

    def abort_nowait(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        """Queue an abort; ignored if the worker is not there."""

    def ask_snapshot(self, worker_id: WorkerId) -> None:
        """Have the worker tell anew what its cache holds; ignored if it is not there."""


class ModelInfo(msgspec.Struct, frozen=True):
    """The served model. `created`: unix seconds. `context_tokens` 0 while no worker has told its capacity."""

    name: str
    created: int
    context_tokens: int


class Gateway(Protocol):
    """What is behind the doors."""

    async def generate(self, request: GenerateInput) -> GenerationStream:
        """Accept a request. Raises `PrebledError` (bad value, unknown model, too long, saturated, no worker, draining)
        before anything is streamed; nothing is then left behind."""

    def model(self) -> ModelInfo: ...

    def status(self) -> DaemonStatus: ...

    def explain(self, request_id: str) -> Explanation:
        """The newest decision on a request. Raises NotFound if it is unknown or was too long ago."""
