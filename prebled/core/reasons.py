"""What a placement remembers of the candidates, so that its reason can be written out when somebody asks.

Of up to `KEPT_WHOLE` candidates it keeps all of the policy's arrays, which takes no time, and no more memory than eight
written-out candidates; of more it keeps the eight that would be shown. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from prebled.core.decisions import Candidate
from prebled.core.sight import Choice, Numbers, Vector
from prebled.core.types import WorkerId

SHOWN = 8
"""Candidates shown with a placement."""

KEPT_WHOLE = 64
"""So many candidates are kept: four arrays of 64 take 2.5 kB, eight written-out candidates 1.6 kB."""

_NOTHING = (0.0,) * SHOWN


class Weighed(msgspec.Struct, frozen=True, gc=False):
    """The candidates of one choice. A `Ranking`."""

    ids: Sequence[WorkerId]
    cached_tokens: Numbers
    choice: Choice

    def candidates(self) -> tuple[Candidate, ...]:
        """The cheapest, cheapest first, equal ones by slot, and the chosen one among them in any case."""
        ids, choice = self.ids, self.choice
        order = _shown(choice)
        return tuple(
            map(
                Candidate,
                [ids[index] for index in order.tolist()],
                map(int, _taken(self.cached_tokens, order)),
                _taken(choice.load_s, order),
                _taken(choice.eviction_s, order) if choice.eviction_s is not None else _NOTHING,
                _taken(choice.prefill_s, order),
                _taken(choice.total_s, order),
            )
        )


def weighed(ids: Sequence[WorkerId], cached_tokens: Numbers, choice: Choice) -> Weighed:
    """What is to be kept of a choice. `cached_tokens` and the vectors of the choice must not change any more."""
    if len(ids) <= KEPT_WHOLE:
        return Weighed(ids, cached_tokens, choice)
    order = _shown(choice)
    kept = Choice(
        int((order == choice.chosen).argmax()),
        choice.mode,
        _taken(choice.load_s, order),
        _taken(choice.prefill_s, order),
        _taken(choice.total_s, order),
        _taken(choice.eviction_s, order) if choice.eviction_s is not None else None,
    )
    return Weighed([ids[index] for index in order.tolist()], cached_tokens.take(order), kept)


def _taken(values: Vector, order: NDArray[np.intp]) -> list[float]:
    taken: list[float] = np.asarray(values).take(order).tolist()
    return taken


def _shown(choice: Choice) -> NDArray[np.intp]:
    """The indices of the candidates to be shown, in order."""
    left = np.array(choice.total_s)
    order = []
    for _ in range(min(SHOWN, len(left))):  # a few times the least takes less than sorting hundreds
        order.append(cheapest := int(left.argmin()))
        left[cheapest] = np.inf
    if choice.chosen not in order:
        order[-1] = choice.chosen
    return np.array(order)
