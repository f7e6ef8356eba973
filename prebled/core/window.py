"""What was assigned to each worker within the history window: Preble's L (section 3.2), W_i of its algorithm 2.

L_i sums PT + DT over the requests assigned to worker i in the window H: PT, the prefill seconds of what missed there;
DT, the decode seconds at the mean output length seen on i within H (45 tokens, as in the released code, while none has
been). Decode is linear in context, so sums of counts and prompt tokens are enough, and each event changes one worker's
L in constant time. An output leaves the window with the request that made it. At most `MOST_REQUESTS` are remembered;
past that the oldest leave early. Knows no prefixes.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from prebled.core.load import FIRST_OUTPUT_GUESS

MOST_REQUESTS = 1 << 17
EXPIRED_PER_STEP = 64
"""So many may leave in one step: a pause is caught up with in small ones."""


class _Sums:
    """Of the requests assigned to one worker, in one of its lives."""

    __slots__ = ("count", "ended", "output_tokens", "prefill_s", "prompt_tokens", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.count = 0
        self.prefill_s = 0.0
        self.prompt_tokens = 0
        self.ended = 0
        self.output_tokens = 0


class Assigned:
    """One request of the window. `output_tokens` None: not ended yet."""

    __slots__ = ("is_counted", "output_tokens", "prefill_s", "prompt_tokens", "sums", "time")

    def __init__(self, time: float, sums: _Sums, prefill_s: float, prompt_tokens: int) -> None:
        self.time = time
        self.sums = sums
        self.prefill_s = prefill_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens: int | None = None
        self.is_counted = True


class Window:
    """See the module. Times in seconds, never going back."""

    def __init__(self, window_s: float) -> None:
        # Rows: the sum of PT; output tokens expected in all; mean context while they are made.
        self._table: NDArray[np.float64] = np.zeros((3, 0))
        self._window_s = window_s
        self._requests: deque[Assigned] = deque()
        self._sums: list[_Sums] = []

    def advance(self, now: float) -> None:
        """Let what is older than the window leave it."""
        horizon, requests = now - self._window_s, self._requests
        limit = EXPIRED_PER_STEP
        while requests and limit and (requests[0].time <= horizon or len(requests) > MOST_REQUESTS):
            self.undo(requests.popleft())
            limit -= 1

    def assign(self, slot: int, prefill_s: float, prompt_tokens: int, now: float) -> Assigned:
        """A request is on its way there."""
        self._grow(slot + 1)
        sums = self._sums[slot]
        assigned = Assigned(now, sums, prefill_s, prompt_tokens)
        self._requests.append(assigned)
        sums.count += 1
        sums.prefill_s += prefill_s
        sums.prompt_tokens += prompt_tokens
        self._write(sums)
        return assigned

    def ended(self, assigned: Assigned, output_tokens: int) -> None:
        """It ended by itself."""
        if assigned.is_counted and assigned.output_tokens is None:
            assigned.output_tokens = output_tokens
            assigned.sums.ended += 1
            assigned.sums.output_tokens += output_tokens
            self._write(assigned.sums)

    def undo(self, assigned: Assigned) -> None:
        """It counts no more: it left the window, or never reached its worker."""
        if not assigned.is_counted:
            return
        assigned.is_counted = False
        sums = assigned.sums
        sums.count -= 1
        # Exactly nothing where nothing is left: no drift of floats over the years.
        sums.prefill_s = sums.prefill_s - assigned.prefill_s if sums.count else 0.0
        sums.prompt_tokens -= assigned.prompt_tokens
        if assigned.output_tokens is not None:
            sums.ended -= 1
            sums.output_tokens -= assigned.output_tokens
        self._write(sums)

    def forget(self, slot: int) -> None:
        """The worker there is gone, or begins anew: nothing is assigned to it."""
        if slot < len(self._sums):
            self._sums[slot] = _Sums(slot)
            self._write(self._sums[slot])

    def sums(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """For each of these workers: the sum of PT, the output tokens expected in all, and the mean context while they
        are made, by which the worker's own decode cost gives the sum of DT."""
        self._grow(int(slots[-1]) + 1)
        return self._table.take(slots, axis=1)

    def _write(self, sums: _Sums) -> None:
        if sums is not self._sums[sums.slot]:  # of an earlier life of the worker
            return
        output_tokens = sums.output_tokens / sums.ended if sums.ended else FIRST_OUTPUT_GUESS
        context = sums.prompt_tokens / sums.count + output_tokens / 2 if sums.count else 0.0
        self._table[:, sums.slot] = (sums.prefill_s, sums.count * output_tokens, context)

    def _grow(self, slots: int) -> None:
        more = slots - len(self._sums)
        if more > 0:
            self._table = np.append(self._table, np.zeros((3, more)), axis=1)
            self._sums += [_Sums(slot) for slot in range(len(self._sums), slots)]
