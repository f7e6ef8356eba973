"""The newest steps of the engine, kept for the next beat.

Bounded: a beat carries the newest `MOST` steps since the beat before it and says how many it leaves out. A daemon that
is new here is told of the newest steps whoever they were taken for, so that it knows this machine from the first beat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from prebled.messages import StepSample

MOST = 128


class StepLog:
    """See the module."""

    def __init__(self) -> None:
        self._newest: deque[StepSample] = deque(maxlen=MOST)
        self._untold = 0

    def add(self, samples: Sequence[StepSample]) -> None:
        """Steps that were taken, in order."""
        self._newest.extend(samples)
        self._untold += len(samples)

    def take(self) -> tuple[tuple[StepSample, ...], int]:
        """The newest steps since the last call, in order, and the number of those that are left out."""
        told = min(self._untold, len(self._newest))
        left_out, self._untold = self._untold - told, 0
        return tuple(self._newest)[len(self._newest) - told :], left_out

    def tell_again(self) -> None:
        """Whoever asks next knows none of the steps."""
        self._untold = len(self._newest)
