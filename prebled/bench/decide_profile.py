"""Where the time of a decision goes: clocks around its parts, for as long as one run is watched.

Each part is timed with the clock that times the whole, and the clock's own time (twice 40 to 80 ns a part) is in it;
what no part accounts for is `rest`, with the calls between them. So the parts of one run add up to its whole, which is
a little longer than without the clocks. The parts of a decision are called once each, one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import msgspec
import numpy as np

from prebled.core import placing
from prebled.core.journal import Journal
from prebled.core.load import Loads
from prebled.core.matching import Match
from prebled.core.placing import Placer
from prebled.core.prefix_tree import PrefixTree
from prebled.core.sharing import Sharing
from prebled.core.sight import Policy

REST = "rest"


class Part(msgspec.Struct, frozen=True):
    """One part of a decision: its median, in microseconds, and its share of the time of all decisions."""

    part: str
    p50: float
    share: float


class Profile:
    """Takes the nanoseconds of parts, decision after decision."""

    def __init__(self) -> None:
        self._spent: dict[str, int] = {}
        self._decisions: list[dict[str, int]] = []

    def clocked(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time taken."""

        def timed(*args: Any, **options: Any) -> Any:
            start = perf_counter_ns()
            try:
                return call(*args, **options)
            finally:
                self._spent[part] = self._spent.get(part, 0) + perf_counter_ns() - start

        return timed

    def begin(self) -> None:
        """A decision begins: what was timed before it is not its own."""
        self._spent = {}

    def end(self, nanoseconds: int) -> None:
        """It took so long in all."""
        self._decisions.append({**self._spent, REST: nanoseconds - sum(self._spent.values())})

    def parts(self) -> tuple[Part, ...]:
        """Of all decisions, the largest first."""
        names = {name for decision in self._decisions for name in decision}
        spent = {name: np.array([decision.get(name, 0) for decision in self._decisions]) / 1000 for name in names}
        whole = sum(float(one.sum()) for one in spent.values())
        parts = [
            Part(name, round(float(np.median(one)), 2), round(float(one.sum()) / whole, 4))
            for name, one in spent.items()
        ]
        return tuple(sorted(parts, key=lambda part: -part.share))


@contextmanager
def watched(profile: Profile, policy: Policy) -> Iterator[None]:
    """Put clocks around the parts of every decision that this policy makes, and take them off at the end."""
    places: list[tuple[Any, str, str]] = [
        (Placer, "advance", "advance the window"),
        (placing, "hash_path", "hash"),
        (PrefixTree, "match", "match"),
        (Match, "held_tokens", "match: tokens by worker"),
        (type(policy), "choose", "choose"),
        (PrefixTree, "book", "book in the tree"),
        (Loads, "book", "book in the loads"),
        (Sharing, "book", "book the sharing"),
        (placing, "weighed", "keep the reason"),
        (Journal, "placed", "journal"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, part in places:
            setattr(owner, name, profile.clocked(part, getattr(owner, name)))
        yield
    finally:
        for owner, name, call in before:
            setattr(owner, name, call)
