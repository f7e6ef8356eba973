"""What a placement policy sees of one request and its candidates, and what it answers. Arrays have one entry per
candidate, in the order of slots; costs are seconds of the worker's time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from prebled.core.cost import CostModel, decode_seconds, prefill_seconds
from prebled.core.decisions import Mode
from prebled.core.load import (
    BOOKED,
    DECODE,
    DECODE_CONTEXT,
    DECODE_SEQUENCE,
    DECODING,
    KV_TOKENS,
    PREFILL_HALF_CONTEXT,
    PREFILL_TOKEN,
    REQUESTS,
    SPEED,
    WAITING_TOKENS,
    Work,
    wait_s,
)
from prebled.core.sharing import Sharing
from prebled.core.types import WorkerId

if TYPE_CHECKING:
    from prebled.core.use_order import UseOrder

FEW = 12
"""Up to so many candidates plain floats are quicker than arrays: a call of numpy takes as long as a dozen sums."""

TIE_S = 1e-9
"""Costs closer than this are equal: sums of the same numbers in another order differ by less."""

Seconds: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.float64]

Vector: TypeAlias = NDArray[np.float64] | list[float]
"""One number per candidate; which of the two is a matter of speed."""

Indices: TypeAlias = Sequence[int] | NDArray[np.intp]
"""Some candidates, ascending."""


class Costs(Protocol):
    """What work costs each worker: the loads."""

    def cost(self, slot: int) -> CostModel:
        """Its cost model as of now."""


class Caches(Protocol):
    """What is believed to be in the workers' caches: the prefix tree."""

    def use_order(self, slot: int) -> UseOrder:
        """What that worker holds, in the order of its last use. Not to be changed."""


class Sight(msgspec.Struct, frozen=True, gc=False):
    """To be read while choosing, not later. `cached_tokens`: how much of the prompt each candidate is believed to hold,
    or to be computing, of what an engine can take from its cache. `loads`: the rows of `Loads.table`; `costs`: the
    models behind them. `hashes`: the prompt's path."""

    prompt_tokens: int
    cached_tokens: Numbers
    loads: Sequence[Numbers]
    costs: Costs
    now: float
    ids: Sequence[WorkerId]
    slots: NDArray[np.int64]
    hashes: bytes
    block_tokens: int
    sharing: Sharing
    caches: Caches

    def prefill_s(self) -> Seconds:
        """Prefill seconds of what is not cached, for each candidate."""
        loads = self.loads
        return prefill_seconds(
            self.cached_tokens, self.prompt_tokens, loads[PREFILL_TOKEN], loads[PREFILL_HALF_CONTEXT]
        )

    def decode_s(self, output_tokens: Numbers, context_tokens: Numbers) -> Seconds:
        """Decode seconds of so many tokens, for each candidate."""
        loads = self.loads
        return decode_seconds(output_tokens, context_tokens, loads[DECODE_SEQUENCE], loads[DECODE_CONTEXT])

    def cost(self, index: int) -> CostModel:
        """What work costs one candidate."""
        return self.costs.cost(self.slots.item(index))

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
    def speed(self) -> Numbers:
        """How many times as fast as the median worker each candidate prefills."""
        return self.loads[SPEED]

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


class Choice(msgspec.Struct, frozen=True, gc=False):
    """Candidate number `chosen` is to have the request. `total_s` is what was compared; `eviction_s` None: it does not
    count in this policy. `adjusted`: what changed the plain choice, in words. `plan`: for the policy's own `booked`.

    The arrays are the choice's own: they are looked at when somebody asks for the reasons, and must not change until
    then, as the columns of a sight do."""

    chosen: int
    mode: Mode
    load_s: Vector
    prefill_s: Vector
    total_s: Vector
    eviction_s: Vector | None = None
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


def least(values: Vector, last_booked: Numbers, among: Indices | None = None) -> int:
    """The index of the least value, ties broken as `Policy` says; `among`: only these indices."""
    if among is not None:
        if len(among) == 1:
            return int(among[0])
        if isinstance(values, list):
            own: Vector = [values[index] for index in among]
        else:
            own = values[among].tolist() if len(among) <= FEW else values[among]
        return int(among[least(own, last_booked[among])])
    if isinstance(values, list):
        return _least_listed(values, last_booked)
    first = int(values.argmin())
    tied = (values <= values.item(first) + TIE_S).nonzero()[0]
    return first if len(tied) == 1 else int(tied[last_booked[tied].argmin()])


def _least_listed(values: list[float], last_booked: Numbers) -> int:
    first, *others = sorted(values)
    edge = first + TIE_S
    if not others or others[0] > edge:
        return values.index(first)
    return min((index for index, value in enumerate(values) if value <= edge), key=last_booked.item)


def lowest(values: Vector) -> int:
    """The index of the least value, the first of equal ones."""
    return values.index(min(values)) if isinstance(values, list) else int(values.argmin())
