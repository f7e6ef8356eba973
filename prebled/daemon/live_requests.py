"""The accepted requests that have not ended, and the runs they have on workers.

Pure bookkeeping, one writer (the runtime). A request has at most one run whose tokens are wanted; its run's id is kept
until the run has ended or was aborted, which may be a turn after the request itself is gone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec

from prebled.core.types import RequestId, RunId
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.metrics_requests import RequestTimes
from prebled.daemon.streams import RequestStream
from prebled.errors import PrebledError
from prebled.messages import FinishReason, Sampling, Submit, Usage


class LiveRequest:
    """One accepted request. `prompt` (uint32 LE) and `sampling` never change; `run_*` describe the present stay on a
    worker, if any; `cached_tokens`: what the first placement found in its cache (-1: not told yet); `refusal`: why the
    scheduler would not have it; `times`: the meter's."""

    __slots__ = (
        "cached_tokens",
        "prompt",
        "refusal",
        "request_id",
        "run_id",
        "run_tokens",
        "runs",
        "salt",
        "sampling",
        "stream",
        "times",
    )

    def __init__(
        self,
        request_id: RequestId,
        prompt: bytes,
        sampling: Sampling,
        salt: str,
        stream: RequestStream,
        times: RequestTimes,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.sampling = sampling
        self.salt = salt
        self.stream = stream
        self.times = times
        self.run_id: RunId | None = None
        self.run_tokens = 0
        self.runs = 0
        self.cached_tokens = -1
        self.refusal: PrebledError | None = None

    def tokens(self) -> bytes:
        """Prompt plus what was sent: what a worker must compute to go on."""
        return self.prompt + array("I", self.stream.sent_tokens).tobytes()

    def remaining_tokens(self) -> int:
        """Output tokens still to make, at most."""
        return self.sampling.max_tokens - len(self.stream.sent_tokens)

    def submit(self, run_id: RunId) -> Submit:
        """The message that starts a run of what is left to do."""
        sampling = msgspec.structs.replace(self.sampling, max_tokens=self.remaining_tokens())
        return Submit(run_id, self.tokens(), sampling, self.salt)

    def usage(self) -> Usage:
        """The client's token counts."""
        return Usage(len(self.prompt) // 4, len(self.stream.sent_tokens), max(self.cached_tokens, 0))

    def complete_reason(self, eos_token_ids: tuple[int, ...]) -> FinishReason | None:
        """Why a request whose run was lost is complete all the same: the end was lost, not its tokens."""
        sent = self.stream.sent_tokens
        if sent and not self.sampling.ignore_eos and sent[-1] in eos_token_ids:
            return "stop"
        return "length" if self.remaining_tokens() <= 0 else None


def sampling_of(request: GenerateInput, most_tokens: int, eos_token_ids: tuple[int, ...]) -> Sampling:
    """How the request wants its tokens chosen; `most_tokens` where it does not say how many."""
    return Sampling(
        max_tokens=request.max_tokens if request.max_tokens is not None else most_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        stop_token_ids=() if request.ignore_eos else eos_token_ids,
        ignore_eos=request.ignore_eos,
        seed=request.seed,
    )


class LiveRequests:
    """All of them, by request and by run."""

    def __init__(self) -> None:
        self._requests: dict[RequestId, LiveRequest] = {}
        self._runs: dict[RunId, LiveRequest] = {}  # runs whose tokens are wanted
        self._placed: dict[RequestId, RunId] = {}  # runs that may have to be aborted

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._requests.values()))

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._requests

    def add(self, live: LiveRequest) -> None:
        """A request was accepted."""
        self._requests[live.request_id] = live

    def get(self, request_id: RequestId) -> LiveRequest | None:
        """The request, if it has not ended."""
        return self._requests.get(request_id)

    def of_run(self, run_id: RunId) -> LiveRequest | None:
        """The request that waits for this run's tokens; None for a run nobody waits for any more."""
        return self._runs.get(run_id)

    def start_run(self, live: LiveRequest, run_id: RunId) -> None:
        """The request is on a worker."""
        live.run_id, live.run_tokens = run_id, 0
        live.runs += 1
        self._runs[run_id] = live
        self._placed[live.request_id] = run_id

    def end_run(self, live: LiveRequest) -> None:
        """The run has ended or is lost; there is nothing to abort."""
        if live.run_id is not None:
            self._runs.pop(live.run_id, None)
            self._placed.pop(live.request_id, None)
            live.run_id = None

    def take_placed(self, request_id: RequestId) -> RunId | None:
        """The run to abort for this request, at most once."""
        return self._placed.pop(request_id, None)

    def remove(self, request_id: RequestId) -> None:
        """The request has ended. Its run's tokens are not wanted; the run may still have to be aborted."""
        live = self._requests.pop(request_id, None)
        if live is not None and live.run_id is not None:
            self._runs.pop(live.run_id, None)
