"""What a placement policy sees of one request and its candidates, and what it answers. Arrays have one entry per
candidate, in the order of slots; costs are seconds of the worker's time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prebled.core.cost import CostModel
from prebled.core.decisions import Mode
from prebled.core.load import BOOKED, DECODE, DECODING, KV_TOKENS, REQUESTS, WAITING_TOKENS, Work, wait_s
from prebled.core.sharing import Sharing
from prebled.core.types import WorkerId

if TYPE_CHECKING:
    from prebled.core.use_order import UseOrder

TIE_S = 1e-9
"""Costs closer than this are equal: sums of the same numbers in another order differ by less."""

Seconds = NDArray[np.float64]
Numbers = NDArray[np.float64]


class Caches(Protocol):
    """What is believed to be in the workers' caches: the prefix tree."""

    def use_order(self, slot: int) -> UseOrder:
        """What that worker holds, in the order of its last use. Not to be changed."""


class Sight(NamedTuple):
    """A snapshot, to be read while choosing. `cached_tokens`: how much of the prompt each candidate is believed to
    hold, or to be computing, of what an engine can take from its cache. `loads`: the columns of `Loads.table`.
    `hashes`: the prompt's path."""

    prompt_tokens: int
    cached_tokens: NDArray[np.int64]
    loads: NDArray[np.float64]
    cost: CostModel
    now: float
    ids: Sequence[WorkerId]
    slots: NDArray[np.int64]
    hashes: bytes
    block_tokens: int
    sharing: Sharing
    caches: Caches

    def prefill_s(self) -> Seconds:
        """Prefill seconds of what is not cached, for each candidate."""
        uncached: Seconds = np.subtract(float(self.prompt_tokens), self.cached_tokens)
        return self.cost.prefill_s(uncached, self.prompt_tokens)

    def wait_s(self) -> Seconds:
        """Prefill seconds queued or running on each candidate, less what is done of the one in progress."""
        return wait_s(self.loads, self.now)

    def load_s(self) -> Seconds:
        """All work still to do on each candidate."""
        load_s: Seconds = self.wait_s() + self.loads[DECODE]
        return load_s

    @property
    def decoding(self) -> Numbers:
        """Sequences that decode on each candidate."""
        row: Numbers = self.loads[DECODING]
        return row

    @property
    def requests(self) -> Numbers:
        """Requests in flight on each candidate."""
        row: Numbers = self.loads[REQUESTS]
        return row

    @property
    def waiting_tokens(self) -> Numbers:
        """Uncached tokens of the requests on each candidate that have no first token yet."""
        row: Numbers = self.loads[WAITING_TOKENS]
        return row

    @property
    def kv_tokens(self) -> Numbers:
        """Prompt and output tokens of the requests in flight on each candidate."""
        row: Numbers = self.loads[KV_TOKENS]
        return row

    @property
    def last_booked(self) -> Numbers:
        """The number of each candidate's newest booking."""
        row: Numbers = self.loads[BOOKED]
        return row


class Choice(NamedTuple):
    """Candidate number `chosen` is to have the request. `total_s` is what was compared; `eviction_s` None: it does not
    count in this policy. `adjusted`: what changed the plain choice, in words. `plan`: for the policy's own `booked`."""

    chosen: int
    mode: Mode
    load_s: Seconds
    prefill_s: Seconds
    total_s: Seconds
    eviction_s: Seconds | None = None
    adjusted: tuple[str, ...] = ()
    plan: object = None


class Policy(Protocol):
    """One way to place requests."""

    name: str

    def choose(self, sight: Sight) -> Choice:
        """The worker for this request, of at least one candidate. Changes nothing but what time itself does.

        Ties go to the candidate that was given a request longest ago, then to the lower slot, so that idle workers are
        used in turn."""


@runtime_checkable
class Memory(Protocol):
    """A policy that remembers more than the loads: it is also told what becomes of its choices. Its own note on a
    request stands in `Work.memory`. Times in seconds, never going back."""

    def booked(self, sight: Sight, choice: Choice, work: Work) -> None:
        """The choice is carried out."""

    def started(self, work: Work, now: float) -> None:
        """The request's first token came."""

    def finished(self, work: Work, output_tokens: int) -> None:
        """The request ended by itself after so many tokens; `released` follows."""

    def released(self, work: Work, *, is_computed: bool) -> None:
        """The request has left its worker. `is_computed`: its prompt was, or may have been, computed there."""

    def forgot(self, slot: int) -> None:
        """The worker there is gone, or begins anew."""


def least(total_s: Seconds, last_booked: Numbers, among: NDArray[np.int64] | None = None) -> int:
    """The index of the least total, ties broken as `Policy` says; `among`: only these indices."""
    if among is not None:
        if len(among) == 1:
            return int(among[0])
        return int(among[least(total_s[among], last_booked[among])])
    first = total_s.argmin()
    tied = (total_s <= float(total_s[first]) + TIE_S).nonzero()[0]
    return int(first if len(tied) == 1 else tied[last_booked[tied].argmin()])
