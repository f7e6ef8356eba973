"""What becomes of requests, counted and timed as the runtime tells it.

Every accepted request is counted once as finished, failed or cancelled. Times are those of the daemon: a client's
connection and the reading of its body are not in them. The token path costs one call per chunk and one look at the
clock, 0.3 us. Not known here: workers, and who decides.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, get_args

from prebled.core.decisions import Placed, RejectCode
from prebled.daemon.metrics_text import Family, Histogram, counter, histogram
from prebled.errors import PrebledError, SlowReader, WorkerFailed
from prebled.messages import FinishReason

FIRST_TOKEN_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
QUEUE_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_S: Final = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.5, 5.0),
)
REQUEST_S: Final = (
    *(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0),
)

ACCEPTED = counter("prebled_requests_accepted_total", "Requests accepted.")
REJECTED = counter("prebled_requests_rejected_total", "Requests not accepted, by the error's code.", "code")
FINISHED = counter("prebled_requests_finished_total", "Accepted requests that ended well, by finish reason.", "reason")
FAILED = counter("prebled_requests_failed_total", "Accepted requests that ended badly, by the error's code.", "code")
CANCELLED = counter("prebled_requests_cancelled_total", "Accepted requests that their client gave up.")
CONTINUED = counter("prebled_requests_continued_total", "Times a request went on elsewhere after its run was lost.")
PROMPT_TOKENS = counter("prebled_prompt_tokens_total", "Prompt tokens of requests that made their first token.")
CACHED_TOKENS = counter(
    "prebled_cached_tokens_total", "Those of prebled_prompt_tokens_total that the engine took from its cache."
)
GENERATION_TOKENS = counter("prebled_generation_tokens_total", "Output tokens received from workers.")
FIRST_TOKEN = histogram("prebled_time_to_first_token_seconds", "Arrival to first token, tokenising included (TTFT).")
QUEUE = histogram(
    "prebled_request_queue_seconds",
    "Placing on a worker to first token, less what the own prefill was expected to take; again if continued.",
)
INTER_TOKEN = histogram("prebled_inter_token_seconds", "Time between two chunks of a request's tokens (ITL).")
PER_TOKEN = histogram(
    "prebled_time_per_output_token_seconds", "First token to end, per token after the first, if finished (TPOT)."
)
DURATION = histogram("prebled_request_duration_seconds", "Arrival to end of requests that finished (E2E).")
METRICS = (
    *(ACCEPTED, REJECTED, FINISHED, FAILED, CANCELLED, CONTINUED, PROMPT_TOKENS, CACHED_TOKENS, GENERATION_TOKENS),
    *(FIRST_TOKEN, QUEUE, INTER_TOKEN, PER_TOKEN, DURATION),
)


class RequestTimes:
    """One request's moments, in seconds of the meter's clock; None: has not been. `placed_at` and `placement` are those
    of a run that has made no token yet."""

    __slots__ = ("arrived_at", "first_at", "last_at", "placed_at", "placement")

    def __init__(self, arrived_at: float) -> None:
        self.arrived_at = arrived_at
        self.placed_at = 0.0
        self.placement: Placed | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None


class RequestMeter:
    """See the module. Codes are those of `prebled.errors`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accepted = self._cancelled = self._continued = 0
        # What must be expected begins at 0 before it grows, or its first growth would not be seen.
        self._rejected: Counter[str] = Counter(dict.fromkeys(get_args(RejectCode), 0))
        self._failed: Counter[str] = Counter(dict.fromkeys((WorkerFailed.code, SlowReader.code), 0))
        self._finished: Counter[str] = Counter({"stop": 0, "length": 0})
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = 0
        self._first_token = Histogram(FIRST_TOKEN_S)
        self._queue = Histogram(QUEUE_S)
        self._inter_token = Histogram(TOKEN_S)
        self._per_token = Histogram(TOKEN_S)
        self._duration = Histogram(REQUEST_S)

    # --- what the runtime tells ---

    def arrived(self) -> RequestTimes:
        """A request came; nothing is counted yet."""
        return RequestTimes(self._clock())

    def rejected(self, error: PrebledError) -> None:
        """It was not accepted."""
        self._rejected[error.code] += 1

    def accepted(self) -> None:
        """It was."""
        self._accepted += 1

    def placed(self, times: RequestTimes, placement: Placed) -> None:
        """A run of it is on its way to a worker."""
        times.placed_at, times.placement = self._clock(), placement

    def prompt_computed(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Its first run told what it found in the cache."""
        self._prompt_tokens += prompt_tokens
        self._cached_tokens += cached_tokens

    def chunk(self, times: RequestTimes, tokens: int) -> None:
        """So many tokens of it came."""
        now = self._clock()
        if times.placement is not None:
            self._begun(times, times.placement, now)
        last_at = times.last_at
        if last_at is not None:
            gaps = self._inter_token
            gap_s = now - last_at
            gaps.counts[bisect_left(TOKEN_S, gap_s)] += 1
            gaps.sum += gap_s
        times.last_at = now
        self._generation_tokens += tokens

    def finished(self, times: RequestTimes, reason: FinishReason, output_tokens: int) -> None:
        """It ended well."""
        now = self._clock()
        self._finished[reason] += 1
        self._duration.observe(now - times.arrived_at)
        if times.first_at is not None and output_tokens > 1:
            self._per_token.observe((now - times.first_at) / (output_tokens - 1))

    def failed(self, error: Exception | None) -> None:
        """It ended badly; None: its client gave it up."""
        if error is None:
            self._cancelled += 1
        else:
            self._failed[error.code if isinstance(error, PrebledError) else PrebledError.code] += 1

    def continued(self) -> None:
        """Its run is lost and it goes on elsewhere."""
        self._continued += 1

    # --- what is asked ---

    def counters(self) -> dict[str, int]:
        """For `prebled status`."""
        return {
            "requests_accepted": self._accepted,
            "requests_finished": self._finished.total(),
            "requests_failed": self._failed.total(),
            "requests_cancelled": self._cancelled,
            "requests_continued": self._continued,
            **{f"rejected_{code}": count for code, count in self._rejected.items() if count},
        }

    def families(self) -> Iterator[Family]:
        """For `/metrics`."""
        yield ACCEPTED.one(self._accepted)
        yield REJECTED.by(self._rejected)
        yield FINISHED.by(self._finished)
        yield FAILED.by(self._failed)
        yield CANCELLED.one(self._cancelled)
        yield CONTINUED.one(self._continued)
        yield PROMPT_TOKENS.one(self._prompt_tokens)
        yield CACHED_TOKENS.one(self._cached_tokens)
        yield GENERATION_TOKENS.one(self._generation_tokens)
        yield Family(FIRST_TOKEN, self._first_token.samples())
        yield Family(QUEUE, self._queue.samples())
        yield Family(INTER_TOKEN, self._inter_token.samples())
        yield Family(PER_TOKEN, self._per_token.samples())
        yield Family(DURATION, self._duration.samples())

    def _begun(self, times: RequestTimes, placement: Placed, now: float) -> None:
        """The first tokens of a run."""
        prefill_s = next((one.prefill_s for one in placement.candidates if one.worker_id == placement.worker_id), 0.0)
        self._queue.observe(max(now - times.placed_at - prefill_s, 0.0))
        times.placement = None
        if times.first_at is None:
            times.first_at = now
            self._first_token.observe(now - times.arrived_at)
