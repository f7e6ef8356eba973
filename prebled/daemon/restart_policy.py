"""When a worker that died is started again: at growing intervals, until it has proved itself.

Pure: `now` (seconds, any monotonic origin) is an argument.
"""

from __future__ import annotations


class RestartPolicy:
    """The first restart comes after `first_s`, each further one after twice as long, up to `most_s`. A worker that has
    served for `most_s` starts again from `first_s`. Time spent on loading proves nothing: a model that loads for
    minutes and then dies would otherwise be loaded for ever at full speed."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s
        self._ready_at: float | None = None

    def ready(self, now: float) -> None:
        """The worker serves."""
        if self._ready_at is None:
            self._ready_at = now

    def delay_after_exit(self, now: float) -> float:
        """The worker died: seconds until its next start."""
        if self._ready_at is not None and now - self._ready_at >= self._most_s:
            self._next_s = self._first_s
        self._ready_at = None
        delay_s = min(self._next_s, self._most_s)
        self._next_s = min(2 * self._next_s, self._most_s)
        return delay_s
