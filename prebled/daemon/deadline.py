"""A timer that follows the scheduler's next deadline, on the running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """Calls `due` once the time last given to `follow` has come. `clock` in seconds."""

    def __init__(self, due: Callable[[], None], clock: Callable[[], float]) -> None:
        self._due = due
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._at: float | None = None

    def follow(self, deadline: float | None) -> None:
        """The next deadline is this one now; None: there is none."""
        if deadline == self._at:
            return
        self.cancel()
        self._at = deadline
        if deadline is not None:
            delay_s = max(deadline - self._clock(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def cancel(self) -> None:
        """There is nothing to wait for any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._at = None

    def _fire(self) -> None:
        self._timer = self._at = None
        self._due()
