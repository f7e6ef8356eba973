"""The live load of each worker: what it still has to do, in seconds of its time, requests and tokens.

Preble's L (section 3.2) sums what was assigned over three minutes, which drowns the milliseconds that tell two workers
apart; here work that is done is taken off. A request counts with its uncached prefill until its first token, and with
the decode that is still to be expected of it until it ends. How long an output will be is not known: the running mean
of those that ended is assumed (at first 45 tokens, as in Preble's released code).

Requests that a worker reports beyond those booked here (another daemon left them) count as average ones. The prefill
that a worker is busy with is not reported while it lasts: it is taken to be that of the request which waits longest,
and to advance with time from the worker's last first token on, to its end at most. Knows nothing of prefixes.

Every worker has a cost model of its own, at first the one that all are given. A new model prices what is booked and
counted from then on; what is booked stays as it was priced, so that sums and their parts agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from prebled.core.cost import CostModel, prefill_seconds

FIRST_OUTPUT_GUESS = 45.0
"""Output tokens expected of a request before any has ended."""

OUTPUT_MEMORY = 1 / 64
"""Weight of the newest output, or request, in a running mean."""

BEHIND, UNTIL, DECODE, DECODING, REQUESTS, WAITING_TOKENS, KV_TOKENS, BOOKED = range(8)
"""Rows of `Loads.table`. Seconds of prefill still to do but for the one in progress; the time until which all prefill
lasts (so the greater of `BEHIND` and `UNTIL` - now is what is left of it); seconds of decode still to do; sequences
that decode; requests in flight; their uncached tokens without a first token yet; prompt and output tokens of all of
them; the number of the newest booking, for breaking ties."""

PREFILL_TOKEN, PREFILL_HALF_CONTEXT, DECODE_SEQUENCE, DECODE_CONTEXT, SPEED = range(8, 13)
"""More of them: coefficients of the worker's cost model, as `prefill_seconds` and `decode_seconds` take them; and how
many times as fast as the median worker it computes a prompt of `TYPICAL_TOKENS` (1 where all are alike)."""

OUTPUT = 13
"""And: by how many seconds a mean output is slowed by the requests in flight there, once they all decode."""

ROWS = 14

TYPICAL_TOKENS = 2048


class Work(msgspec.Struct, eq=False):
    """What one request still costs its worker, in seconds. `memory`: the policy's own note on it, if it keeps one."""

    slot: int
    prompt_tokens: int
    uncached_tokens: int
    max_tokens: int
    output_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    sharing: tuple[bytes, ...] = ()
    memory: object = None


class _Slot:
    """The sums of one worker. `waiting`: booked here, without a first token, oldest first."""

    __slots__ = (
        "cost",
        "decode_s",
        "foreign_decoding",
        "foreign_waiting",
        "kv_tokens",
        "prefill_s",
        "requests",
        "since",
        "waiting",
        "waiting_tokens",
    )

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.waiting: dict[Work, None] = {}
        self.requests = 0
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.waiting_tokens = 0
        self.kv_tokens = 0
        self.since = 0.0
        self.foreign_waiting = 0
        self.foreign_decoding = 0


class Loads:
    """`table[row, slot]`, `rows[row][slot]`: see the rows; 0 where there was never a worker. Time is that of the last
    `advance`. `cost`: the model of every worker until it is given another."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self.table: NDArray[np.float64] = np.zeros((ROWS, 0))
        self.rows: list[NDArray[np.float64]] = []
        self._cells: list[memoryview[float]] = []  # the same again: to write there takes a tenth of the time
        self.mean_output_tokens = FIRST_OUTPUT_GUESS
        self._slots: list[_Slot] = []
        self._bookings = 0
        self._mean_prefill_s = 0.0
        self._mean_decode_s = 0.0
        self._now = 0.0

    @property
    def seconds(self) -> NDArray[np.float64]:
        """All that each worker still has to do."""
        seconds: NDArray[np.float64] = wait_s(self.table, self._now) + self.table[DECODE]
        return seconds

    def advance(self, now: float) -> None:
        """Time has passed."""
        self._now = now

    def reset(self, slot: int) -> None:
        """A worker starts there with nothing to do and the cost model of all."""
        if slot >= len(self._slots):
            self._grow(slot + 1)
        self._slots[slot] = own = _Slot(self._cost)
        self._write(slot, own)
        self.set_cost(slot, self._cost)

    def cost(self, slot: int) -> CostModel:
        """What work costs the worker there."""
        return self._slots[slot].cost

    def set_cost(self, slot: int, cost: CostModel) -> None:
        """What work costs the worker there from now on."""
        self._slots[slot].cost = cost
        self.table[PREFILL_TOKEN:SPEED, slot] = (
            cost.prefill_token_s,
            0.5 * cost.prefill_token_context_s,
            cost.decode_sequence_s,
            cost.decode_context_s,
        )
        begin = np.zeros(len(self._slots))
        typical_s = prefill_seconds(begin, TYPICAL_TOKENS, self.rows[PREFILL_TOKEN], self.rows[PREFILL_HALF_CONTEXT])
        known = typical_s > 0  # not where there was never a worker
        ordered = np.sort(typical_s[known])
        if len(ordered):
            self.rows[SPEED][known] = ordered[len(ordered) // 2] / typical_s[known]

    def book(self, slot: int, prompt_tokens: int, uncached_tokens: int, max_tokens: int) -> Work:
        """A request is on its way there."""
        own = self._slots[slot]
        work = Work(slot, prompt_tokens, uncached_tokens, max_tokens)
        work.prefill_s = prefill_s = own.cost.prefill_s(uncached_tokens, prompt_tokens)
        work.decode_s = decode_s = self._decode_s(work, own)
        self._mean_prefill_s += OUTPUT_MEMORY * (prefill_s - self._mean_prefill_s)
        self._mean_decode_s += OUTPUT_MEMORY * (decode_s - self._mean_decode_s)
        self._bookings += 1
        self._cells[BOOKED][slot] = self._bookings
        if not own.waiting:
            own.since = self._now
        own.waiting[work] = None
        own.requests += 1
        own.prefill_s += prefill_s
        own.decode_s += decode_s
        own.waiting_tokens += uncached_tokens
        own.kv_tokens += prompt_tokens
        self._write(slot, own)
        return work

    def first_token(self, work: Work) -> None:
        """Its prompt is computed; what is next in line has just begun."""
        own = self._slots[work.slot]
        self._unqueue(own, work)
        own.since = self._now
        self._write(work.slot, own)

    def tokens_made(self, work: Work, output_tokens: int) -> None:
        """It has made so many tokens in all."""
        own = self._slots[work.slot]
        own.kv_tokens += output_tokens - work.output_tokens
        work.output_tokens = output_tokens
        before_s = work.decode_s
        work.decode_s = self._decode_s(work, own)
        own.decode_s = max(own.decode_s + work.decode_s - before_s, 0.0)
        self._write(work.slot, own)

    def release(self, work: Work) -> None:
        """It has left, one way or another."""
        own = self._slots[work.slot]
        self._unqueue(own, work)
        own.requests -= 1
        own.kv_tokens -= work.prompt_tokens + work.output_tokens
        # Exactly nothing when the last one leaves: no drift of floats over the years.
        own.decode_s = max(own.decode_s - work.decode_s, 0.0) if own.requests else 0.0
        self._write(work.slot, own)

    def learn_output(self, output_tokens: int) -> None:
        """A request ended by itself after so many tokens."""
        self.mean_output_tokens += OUTPUT_MEMORY * (output_tokens - self.mean_output_tokens)

    def report(self, slot: int, queued: int, running: int) -> None:
        """The worker itself counts so many requests."""
        own = self._slots[slot]
        foreign = max(queued + running - own.requests, 0)
        if not foreign and not own.foreign_waiting and not own.foreign_decoding:
            return
        own.foreign_waiting = min(foreign, max(queued - len(own.waiting), 0))
        own.foreign_decoding = foreign - own.foreign_waiting
        self._write(slot, own)

    def check_invariants(self, slot: int, count: int, own_s: float) -> None:
        """AssertionError unless so many requests with so much work are booked there. For tests."""
        own = self._slots[slot]
        assert own.requests == count >= len(own.waiting)
        assert abs(own.prefill_s + own.decode_s - own_s) < 1e-6 * max(own_s, 1.0)
        assert own.waiting_tokens == sum(work.uncached_tokens for work in own.waiting)
        prefills = [work.prefill_s for work in own.waiting]
        assert self.seconds[slot] >= sum(prefills[1:]) + own.decode_s - 1e-9
        assert count or not self.table[KV_TOKENS, slot]

    def _unqueue(self, own: _Slot, work: Work) -> None:
        """Its prefill is no longer to be done."""
        if work not in own.waiting:
            return
        if next(iter(own.waiting)) is work:
            own.since = self._now
        del own.waiting[work]
        own.waiting_tokens -= work.uncached_tokens
        own.prefill_s = max(own.prefill_s - work.prefill_s, 0.0) if own.waiting else 0.0
        work.prefill_s = 0.0

    def _decode_s(self, work: Work, own: _Slot) -> float:
        # One that has outlived the mean is expected to go on as long as it has gone so far, up to the mean.
        made, mean = work.output_tokens, self.mean_output_tokens
        expected = max(mean - made, min(made, mean)) if made else mean
        left = min(expected, work.max_tokens - made)
        return own.cost.decode_s(left, work.prompt_tokens + made) if left > 0 else 0.0

    def _grow(self, slots: int) -> None:
        more = slots - len(self._slots)
        self.table = np.append(self.table, np.zeros((ROWS, more)), axis=1)
        self._slots += [_Slot(self._cost) for _ in range(more)]
        self.rows = list(self.table)
        self._cells = [row.data.cast("B").cast("d") for row in self.rows]

    def _write(self, slot: int, own: _Slot) -> None:
        waiting, decoding = own.foreign_waiting, own.foreign_decoding
        prefill_s, own_waiting = own.prefill_s + waiting * self._mean_prefill_s, own.waiting
        behind, until, decode, decoding_row, requests, waiting_tokens, kv_tokens, *_, output = self._cells
        if own_waiting:
            behind_s = prefill_s - next(iter(own_waiting)).prefill_s
            behind[slot] = behind_s if behind_s > 0.0 else 0.0
            until[slot] = own.since + prefill_s
        else:
            behind[slot] = prefill_s
            until[slot] = 0.0
        decode[slot] = own.decode_s + (waiting + decoding) * self._mean_decode_s
        decoding_row[slot] = own.requests - len(own_waiting) + decoding
        requests[slot] = in_flight = own.requests + waiting + decoding
        waiting_tokens[slot] = own.waiting_tokens
        kv_tokens[slot] = own.kv_tokens
        cost = own.cost
        output[slot] = self.mean_output_tokens * (
            cost.decode_sequence_s * in_flight + cost.decode_context_s * own.kv_tokens
        )


def wait_s(table: NDArray[np.float64] | Sequence[NDArray[np.float64]], now: float) -> NDArray[np.float64]:
    """Prefill seconds queued or running, less what is done of the one in progress, by the rows of `Loads.table`."""
    left: NDArray[np.float64] = np.maximum(table[UNTIL] - now, table[BEHIND])
    return left
