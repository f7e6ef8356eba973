"""What was predicted of the engines' caches, held against what they said: `cached_tokens` at each first token.

Where the two differ, the cause is looked for when the request ends, since a worker may report an eviction a little
after the first token. It is that of the first block that was missing:

- `evicted`: the worker has reported since the decision that the block went;
- `not_computed`: another request in flight was to compute it, and had not when the engine looked;
- `never_stored`: it was expected of a request that has ended, and the worker never said that it stored it;
- `more`: nothing was missing, more was cached than predicted;
- `other`: the worker had stored the block before and has not said that it went; it does not report such things, or the
  tree has forgotten the block for want of space, or the engine did not use it.
"""

from __future__ import annotations

from collections import Counter

from prebled.core.decisions import Cause
from prebled.core.prefix_nodes import Visit
from prebled.core.use_order import Holding


class Predictions:
    """Sums since the start, in tokens where they say so."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._count = 0
        self._exact = 0
        self._predicted_tokens = 0
        self._actual_tokens = 0
        self._causes: Counter[Cause] = Counter()
        self._tokens: Counter[Cause] = Counter()

    def compare(self, predicted_tokens: int, actual_tokens: int) -> None:
        """The engine of a request has looked into its cache."""
        self._count += 1
        self._predicted_tokens += predicted_tokens
        self._actual_tokens += actual_tokens
        if predicted_tokens == actual_tokens:
            self._exact += 1

    def settle(self, visit: Visit, found: Holding | None, predicted_tokens: int, actual_tokens: int) -> Cause:
        """Why the two differ, after the end of the request that made this visit. `found`: `visit.found` before that.
        What its worker had to report until then has been applied."""
        if actual_tokens > predicted_tokens:
            cause: Cause = "more"
        elif found is None:
            cause = "other"
        else:
            cause = _why_missing(found, actual_tokens // self._block_tokens, visit.number)
        self._causes[cause] += 1
        self._tokens[cause] += abs(actual_tokens - predicted_tokens)
        return cause

    def counters(self) -> dict[str, int]:
        """As `SchedulerStatistics` has them."""
        return {
            "predictions": self._count,
            "predictions_exact": self._exact,
            "cached_tokens_predicted": self._predicted_tokens,
            "cached_tokens_actual": self._actual_tokens,
            **{f"mispredicted_{cause}": count for cause, count in self._causes.items()},
            **{f"mispredicted_tokens_{cause}": tokens for cause, tokens in self._tokens.items()},
        }


def _why_missing(found: Holding, block: int, number: int) -> Cause:
    """`found`: the deepest holding at the decision, which had this number; `block`: the index of one on its path."""
    if found.node.parent is None:
        return "other"
    holding = found
    while block < holding.parent.node.end:
        holding = holding.parent
    if holding.removed > number:
        return "evicted"
    if not holding.stored:
        return "not_computed" if holding.is_held else "never_stored"
    return "not_computed" if holding.stored > number else "other"
