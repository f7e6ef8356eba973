"""A request of a replay, from its arrival to its end, and its run on a worker."""

from __future__ import annotations

from typing import final

import xxhash

from prebled.bench.trace import TraceRequest
from prebled.core.blocks import HASH_BYTES
from prebled.core.events import RequestArrived
from prebled.core.types import RequestId, RunId
from prebled.worker.sim_run import SimRun


@final
class ReplayRequest:
    """`number`: in its trace. Times in seconds of the replay: of its arrival, of the step that began its prompt, of its
    first token and of its last; -1 before. `made_tokens`: output tokens of runs that it has lost. `run`, on the worker
    number `worker`: its newest."""

    __slots__ = (
        "arrived_at",
        "cached_tokens",
        "finished_at",
        "first_token_at",
        "made_tokens",
        "number",
        "request_id",
        "run",
        "runs",
        "started_at",
        "trace",
        "worker",
    )

    def __init__(self, number: int, trace: TraceRequest, arrived_at: float) -> None:
        self.number = number
        self.request_id = RequestId(f"r{number}")
        self.trace = trace
        self.arrived_at = arrived_at
        self.started_at = -1.0
        self.first_token_at = -1.0
        self.finished_at = -1.0
        self.cached_tokens = 0
        self.made_tokens = 0
        self.runs = 0
        self.run: ReplayRun | None = None
        self.worker = -1

    def arrival(self) -> RequestArrived:
        """The event that it has come, or has come back from a worker that lost it."""
        path = self.trace.path
        prompt_tokens = self.trace.prompt_tokens + self.made_tokens
        if self.run is not None:
            path = self.run.path
        return RequestArrived(
            self.request_id,
            b"",
            self.trace.output_tokens - self.made_tokens,
            continued=self.run is not None,
            path=path,
            prompt_tokens=prompt_tokens,
        )

    def ttft_s(self, now: float) -> float:
        """From its arrival to its first token, or until now."""
        return (self.first_token_at if self.first_token_at >= 0 else now) - self.arrived_at

    def tpot_s(self, now: float) -> float:
        """From its first token to its last, or until now, for each token after the first; 0.0 for none."""
        if self.first_token_at < 0 or self.trace.output_tokens == 1:
            return 0.0
        until = self.finished_at if self.finished_at >= 0 else now
        return (until - self.first_token_at) / (self.trace.output_tokens - 1)

    def start_run(self, worker: int, *, is_length_known: bool) -> ReplayRun:
        """A run from prompt and what was made so far."""
        self.worker = worker
        self.runs += 1
        self.run = ReplayRun(self, is_length_known=is_length_known)
        return self.run

    def lose_run(self, output_tokens: int, block_tokens: int) -> None:
        """Its run is gone, after so many tokens."""
        assert self.run is not None
        self.made_tokens += output_tokens
        self.run.cover((self.trace.prompt_tokens + self.made_tokens) // block_tokens)


@final
class ReplayRun(SimRun):
    """A run of which hashes and lengths are known, but no tokens. `is_lost`: nobody wants its tokens any more."""

    __slots__ = ("is_lost", "request")

    def __init__(self, request: ReplayRequest, *, is_length_known: bool) -> None:
        arrival = request.arrival()
        super().__init__(
            RunId(f"{request.request_id}.{request.runs}"),
            arrival.prompt_tokens,
            arrival.max_tokens,
            arrival.path,
            fixed_length=is_length_known,
        )
        self.request = request
        self.is_lost = False

    def cover(self, blocks: int) -> None:
        """Blocks of the output are those that the session's next turn has there; where that is not known, they are the
        request's own and match nothing."""
        missing = blocks - len(self.path) // HASH_BYTES
        if missing <= 0:
            return
        next_path = self.request.trace.next_path
        if next_path.startswith(self.path):
            self.path = next_path[: blocks * HASH_BYTES]
            missing = blocks - len(self.path) // HASH_BYTES
        own = self.request.request_id.encode()
        for _ in range(missing):
            seed = int.from_bytes(self.path[-HASH_BYTES:], "little")
            self.path += xxhash.xxh3_64_digest(own, seed)
