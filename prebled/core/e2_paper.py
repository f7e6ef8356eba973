"""E2 as Preble's paper has it (section 3.2, algorithms 1 and 2). docs/decisions/0006 says what `e2` does differently.

Exploit iff less of the prompt is missed than is cached, on K, the workers that hold the longest matched prefix; of K
the least L + M + P. Otherwise explore: the worker most dominated by decode if that passes IMBALR, else the least
L + M + P of all. In seconds: L is the history window's (`window`), M what would be evicted (`eviction`), P the prefill
of what misses.

Then the adjustments, each on one request at a time, so that none ever walks the tree:
- rebalancing: a request that would exploit the worker with the highest L goes to the one with the least, while the
  former is over Th_bal times the latter and over a floor (our addition: near nothing, ratios mean nothing);
- replication of a hot prefix: one request goes to the least loaded worker that does not hold it (`replication`);
- prefill/decode balancing: the paper leaves DECODERATIO open. Here it is a worker's share of decode seconds in L. A
  worker whose load calls for rebalancing is not steered to (our addition), or one ratio could draw everything.

M is worked out only where it can decide: in order of L + P until no other can be cheaper; elsewhere it shows as 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prebled.core.decisions import Mode
from prebled.core.eviction import eviction_s
from prebled.core.load import Work
from prebled.core.replication import Replication
from prebled.core.sharing import landmark
from prebled.core.sight import TIE_S, Choice, Seconds, Sight, least
from prebled.core.window import Assigned, Window
from prebled.settings import CoreSettings

MOST_EVICTIONS = 8
"""For so many candidates M is worked out in any case: those that a reason shows."""


class _Costs(NamedTuple):
    """L, the decode in it, and P."""

    load_s: Seconds
    decode_s: Seconds
    prefill_s: Seconds


class _Weights(NamedTuple):
    """Of L, M and P in a cost; 1 each in the paper."""

    load: float
    eviction: float
    prefill: float


class _Plan(NamedTuple):
    """What becomes of a choice once it is booked. `prefix`: whose queueing time the request tells."""

    prefix: bytes = b""
    copied_from: int = -1
    wait_s: float = 0.0
    is_withdrawal: bool = False


class _Note(NamedTuple):
    assigned: Assigned
    prefix: bytes
    booked_at: float
    prefill_s: float


class E2Paper:
    """See the module."""

    name = "e2-paper"

    def __init__(self, settings: CoreSettings) -> None:
        self._weights = _Weights(settings.paper_load, settings.paper_eviction, settings.paper_prefill)
        self._rebalance = settings.paper_rebalance
        self._floor_s = settings.paper_rebalance_floor_s
        self._decode_ratio = settings.paper_decode_ratio
        self._window = Window(settings.window_s)
        self._replication = Replication(settings.window_s, settings.paper_replicate)

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        self._window.advance(sight.now)
        self._replication.advance(sight.now)
        costs = self._costs(sight)
        most = int(sight.cached_tokens.max())
        if 2 * most > sight.prompt_tokens:
            return self._exploit(sight, costs, most)
        return self._explore(sight, costs)

    # --- Memory ---

    def booked(self, sight: Sight, choice: Choice, work: Work) -> None:
        """See `Memory`."""
        plan = choice.plan
        assert isinstance(plan, _Plan)
        assigned = self._window.assign(work.slot, work.prefill_s, work.prompt_tokens, sight.now)
        work.memory = _Note(assigned, plan.prefix, sight.now, work.prefill_s)
        if plan.copied_from >= 0:
            self._replication.replicate(plan.prefix, plan.copied_from, plan.wait_s, sight.now)
        elif plan.is_withdrawal:
            self._replication.withdraw(plan.prefix)

    def started(self, work: Work, now: float) -> None:
        """See `Memory`."""
        note = _note(work)
        if note.prefix:
            self._replication.waited(note.prefix, max(now - note.booked_at - note.prefill_s, 0.0), now)

    def finished(self, work: Work, output_tokens: int) -> None:
        """See `Memory`."""
        self._window.ended(_note(work).assigned, output_tokens)

    def released(self, work: Work, *, is_computed: bool) -> None:
        """See `Memory`."""
        if not is_computed:
            self._window.undo(_note(work).assigned)

    def forgot(self, slot: int) -> None:
        """See `Memory`."""
        self._window.forget(slot)
        self._replication.forget(slot)

    # --- algorithm 1 ---

    def _costs(self, sight: Sight) -> _Costs:
        assigned_s, output_tokens, context_tokens = self._window.sums(sight.slots)
        decode_s = sight.decode_s(output_tokens, context_tokens)
        return _Costs(assigned_s + decode_s, decode_s, sight.prefill_s())

    def _exploit(self, sight: Sight, costs: _Costs, most: int) -> Choice:
        holders = (sight.cached_tokens == most).nonzero()[0]
        prefix = landmark(sight.hashes, most // sight.block_tokens)
        home = self._replication.home(prefix, sight.now)
        is_withdrawal = home is not None and len(holders) > 1 and bool((sight.slots[holders] == home).any())
        if is_withdrawal:
            before, holders = len(holders), holders[sight.slots[holders] == home]
        chosen, eviction, total_s = _cheapest(sight, costs, self._weights, holders)
        plan, adjusted = _Plan(prefix, is_withdrawal=is_withdrawal), ""
        name = sight.ids[chosen]
        if chosen == costs.load_s.argmax() and self._is_too_heavy(costs.load_s, chosen):
            lightest = least(costs.load_s, sight.last_booked)
            loads = f"{costs.load_s[chosen]:.3g} s to {costs.load_s[lightest]:.3g} s of {sight.ids[lightest]}"
            adjusted = f"rebalanced: the load of {name} is over {self._rebalance:g} times the least, {loads}"
            chosen = lightest
        elif (heat := self._replication.heat(prefix, sight.cost(chosen).prefill_s(most, most))) and len(holders) < len(
            sight.ids
        ):
            others = np.setdiff1d(np.arange(len(sight.ids)), holders)
            plan = _Plan(prefix, int(sight.slots[chosen]), heat[1])
            chosen = least(costs.load_s, sight.last_booked, others)
            rise = f"rose from {heat[0]:.3g} s to {heat[1]:.3g} s within the window"
            adjusted = f"replicated: the prefix's queueing time on {name} {rise}; {sight.ids[chosen]} gets a copy"
        elif is_withdrawal:
            adjusted = f"withdrawn: the prefix has cooled; {name} serves it alone again, no longer {before} workers"
        mode: Mode = "exploit" if 2 * sight.cached_tokens[chosen] > sight.prompt_tokens else "explore"
        words = (adjusted,) if adjusted else ()
        return Choice(chosen, mode, costs.load_s, costs.prefill_s, total_s, eviction, words, plan)

    def _explore(self, sight: Sight, costs: _Costs) -> Choice:
        chosen, eviction, total_s = _cheapest(sight, costs, self._weights)
        share = costs.decode_s / np.maximum(costs.load_s, TIE_S)
        adjusted: tuple[str, ...] = ()
        dominated = least(-share, sight.last_booked)
        if share[dominated] > self._decode_ratio and not self._is_too_heavy(costs.load_s, dominated):
            if dominated != chosen:
                part = f"{100 * share[dominated]:.0f} % of the load of {sight.ids[dominated]} is decode"
                adjusted = (f"steered: {part}, over {100 * self._decode_ratio:g} %",)
            chosen = dominated
        return Choice(chosen, "explore", costs.load_s, costs.prefill_s, total_s, eviction, adjusted, _Plan())

    def _is_too_heavy(self, load_s: Seconds, index: int) -> bool:
        own_s = float(load_s[index])
        return own_s > self._floor_s and own_s > self._rebalance * float(load_s.min())


def _note(work: Work) -> _Note:
    note = work.memory
    assert isinstance(note, _Note)
    return note


def _cheapest(
    sight: Sight, costs: _Costs, weights: _Weights, among: NDArray[np.int64] | None = None
) -> tuple[int, Seconds, Seconds]:
    """The least L + M + P, of all or only `among` these; with it M and the sum."""
    total_s = weights.load * costs.load_s + weights.prefill * costs.prefill_s
    eviction = np.zeros(len(total_s))
    block_tokens = sight.block_tokens
    prompt_blocks = -(-sight.prompt_tokens // block_tokens)
    least_s = float("inf")
    by_plain = total_s.argsort(kind="stable") if among is None else among[total_s[among].argsort(kind="stable")]
    for rank, index in enumerate(by_plain):
        plain_s = total_s.item(index)
        if rank >= MOST_EVICTIONS and plain_s > least_s:
            break
        order = sight.caches.use_order(sight.slots.item(index))
        needed = prompt_blocks - int(sight.cached_tokens.item(index)) // block_tokens
        lost_s = weights.eviction * eviction_s(order, needed, block_tokens, sight.cost(index))
        if lost_s:
            eviction[index] = lost_s
            total_s[index] += lost_s
        least_s = min(least_s, plain_s + lost_s)
    return least(total_s, sight.last_booked, among), eviction, total_s
