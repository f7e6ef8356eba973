"""DualMap (ICLR 2026): each prefix has two workers of its own, by two hashes, and stays with the cached one for as long
as that answers in time.

Of the two, the one that holds more of the prompt is taken while its predicted time to first token (wait + prefill)
keeps the objective, otherwise the one with the lesser prediction. What is hashed is an adaptive prefix: one that more
than 2/n of the recent requests share (n workers) is hashed at twice its length, until its share falls below 1/n. A
prompt shorter than a block shares nothing and goes where it is predicted to start first.

Two differences. The paper's ring of workers is replaced by the highest of one hash per worker and prefix, which moves
as little when workers come and go. Its migration of queued requests within the pair is left out: a request that waits
in an engine cannot be taken back without aborting it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from prebled.core.blocks import HASH_BYTES
from prebled.core.decisions import Mode
from prebled.core.load import Work
from prebled.core.sight import Choice, Sight, least
from prebled.core.types import WorkerId

RECENT = 1024
"""Requests that shares are taken of."""

PER_WORKER = 8
"""Shares are not looked at before so many requests per worker."""

MOST_PAIRS = 4096
"""So many worked-out pairs are kept; they are a saving, not a memory."""

_SALTS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class DualMap:
    """See the module."""

    name = "dualmap"

    def __init__(self, *, objective_s: float = 5.0) -> None:
        """`objective_s`: of the time to first token, as in the paper."""
        self._objective_s = objective_s
        self._recent: deque[tuple[bytes, ...]] = deque()
        self._counts: dict[bytes, int] = {}
        self._extended: set[bytes] = set()
        self._ids: Sequence[WorkerId] = ()
        self._workers: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._pairs: dict[bytes, NDArray[np.int64]] = {}

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        prefixes = self._prefixes(sight.hashes)
        load_s, prefill_s, cached_tokens = sight.wait_s(), sight.prefill_s(), sight.cached_tokens
        predicted_s = load_s + prefill_s
        pair = self._pair(prefixes[-1], sight.ids) if prefixes else np.arange(len(predicted_s))
        chosen = soonest = least(predicted_s, sight.last_booked, pair)
        adjusted: tuple[str, ...] = ()
        if prefixes:
            holders = pair[cached_tokens[pair] == cached_tokens[pair].max()]
            chosen = least(predicted_s, sight.last_booked, holders)
            if predicted_s[chosen] > self._objective_s and soonest != chosen:
                late = f"{sight.ids[chosen]} would start in {predicted_s[chosen]:.3g} s, past {self._objective_s:g} s"
                adjusted = (f"rebalanced: {late}; {sight.ids[soonest]} in {predicted_s[soonest]:.3g} s",)
                chosen = soonest
        mode: Mode = "exploit" if 2 * cached_tokens[chosen] > sight.prompt_tokens else "explore"
        return Choice(chosen, mode, load_s, prefill_s, predicted_s, adjusted=adjusted)

    # --- Memory ---

    def booked(self, sight: Sight, choice: Choice, work: Work) -> None:
        """See `Memory`."""
        prefixes = self._prefixes(sight.hashes)
        self._recent.append(prefixes)
        for prefix in prefixes:
            self._counts[prefix] = self._counts.get(prefix, 0) + 1
        if len(self._recent) > RECENT:
            self._forget(self._recent.popleft())
        workers = len(sight.ids)
        if len(self._recent) < min(PER_WORKER * workers, RECENT):
            return
        for prefix in prefixes:
            share = self._counts.get(prefix, 0) / len(self._recent)
            if share > 2 / workers:
                self._extended.add(prefix)
            elif share < 1 / workers:
                self._extended.discard(prefix)

    def started(self, work: Work, now: float) -> None:
        """See `Memory`."""

    def finished(self, work: Work, output_tokens: int) -> None:
        """See `Memory`."""

    def released(self, work: Work, *, is_computed: bool) -> None:
        """See `Memory`."""

    def forgot(self, slot: int) -> None:
        """See `Memory`."""

    # --- inside ---

    def _prefixes(self, hashes: bytes) -> tuple[bytes, ...]:
        """The prefix that is hashed, last, after the shorter ones that too many requests share."""
        found = []
        stop = HASH_BYTES
        while stop <= len(hashes):
            found.append(hashes[stop - HASH_BYTES : stop])
            if found[-1] not in self._extended:
                break
            stop *= 2
        return tuple(found)

    def _forget(self, prefixes: tuple[bytes, ...]) -> None:
        for prefix in prefixes:
            self._counts[prefix] -= 1
            if not self._counts[prefix]:
                del self._counts[prefix]
                self._extended.discard(prefix)

    def _pair(self, prefix: bytes, ids: Sequence[WorkerId]) -> NDArray[np.int64]:
        """The two workers of a prefix, or the only one."""
        if ids is not self._ids:
            self._ids = ids
            self._pairs.clear()
            self._workers = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in ids], np.uint64)
        if prefix in self._pairs:
            return self._pairs[prefix]
        seeds = self._workers ^ np.frombuffer(prefix, np.uint64)
        first = int(_mixed(seeds ^ _SALTS[0]).argmax())
        others = _mixed(seeds ^ _SALTS[1])
        others[first] = 0
        second = int(others.argmax())
        pair = np.array([first] if len(ids) == 1 else sorted((first, second)))
        if len(self._pairs) >= MOST_PAIRS:
            self._pairs.clear()
        self._pairs[prefix] = pair
        return pair


def _mixed(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a seed moves every bit of what comes out (the finaliser of splitmix64)."""
    mixed = (seeds ^ (seeds >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
