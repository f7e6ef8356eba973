"""Which prefixes wait longer and longer, and where they have been copied: Preble's autoscaling (section 3.2).

A prefix is hot when its mean queueing time grew `growth` times within the history window: that of the newer half
against that of the older half, both with requests in them (as in the released code). Queueing time is that from the
booking to the first token, less the request's own prefill. Since a near nothing doubles easily, it must also be longer
than computing the prefix anew takes. A copy is made by sending one request elsewhere; those that follow find two
holders.

The paper does not say when a copy is given up. Here: once it is as old as the window, if the prefix's mean queueing
time in the newer half is down by the same factor, or nobody asked. Then the first holder alone is used again, and the
worker's own LRU takes the copy away. Prefixes are named by landmarks, so that no tree is walked.
"""

from __future__ import annotations

from collections import OrderedDict, deque

MOST_SAMPLES = 1 << 16
MOST_COPIES = 4096
MOVED_PER_STEP = 64
"""So many samples may grow old in one step: a pause is caught up with in small ones."""


class Queueing:
    """Queueing seconds of one prefix within the window, by halves."""

    __slots__ = ("newer_count", "newer_s", "older_count", "older_s", "prefix")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.older_s = self.newer_s = 0.0
        self.older_count = self.newer_count = 0

    def means_s(self) -> tuple[float, float] | None:
        """Of the older and the newer half; None: one of them is empty."""
        if not self.older_count or not self.newer_count:
            return None
        return self.older_s / self.older_count, self.newer_s / self.newer_count


class Copies:
    """A replicated prefix. `home`: the slot that had it first; `wait_s`: the mean queueing time that made it hot."""

    __slots__ = ("home", "is_withdrawn", "since", "wait_s")

    def __init__(self, home: int, since: float, wait_s: float) -> None:
        self.home = home
        self.since = since
        self.wait_s = wait_s
        self.is_withdrawn = False


class Replication:
    """See the module. Times in seconds, never going back."""

    def __init__(self, window_s: float, growth: float) -> None:
        self._window_s = window_s
        self._growth = growth
        self._newer: deque[tuple[float, Queueing, float]] = deque()
        self._older: deque[tuple[float, Queueing, float]] = deque()
        self._queueing: dict[bytes, Queueing] = {}
        self._copies: OrderedDict[bytes, Copies] = OrderedDict()

    def advance(self, now: float) -> None:
        """Let samples grow old, and leave."""
        middle, horizon = now - self._window_s / 2, now - self._window_s
        for _ in range(MOVED_PER_STEP):
            if self._older and (self._older[0][0] <= horizon or self._samples() > MOST_SAMPLES):
                self._expire()
            elif self._newer and (self._newer[0][0] <= middle or self._samples() > MOST_SAMPLES):
                self._age()
            else:
                return

    def waited(self, prefix: bytes, seconds: float, now: float) -> None:
        """A request of this prefix got its first token after so much queueing."""
        queueing = self._queueing.get(prefix)
        if queueing is None:
            queueing = self._queueing[prefix] = Queueing(prefix)
        queueing.newer_s += seconds
        queueing.newer_count += 1
        self._newer.append((now, queueing, seconds))

    def heat(self, prefix: bytes, least_s: float) -> tuple[float, float] | None:
        """Mean queueing time of the older and the newer half if the prefix is hot. `least_s`: what a copy costs."""
        queueing = self._queueing.get(prefix)
        means = queueing.means_s() if queueing is not None else None
        if means is None or means[1] <= least_s or means[1] < self._growth * means[0]:
            return None
        return means

    def home(self, prefix: bytes, now: float) -> int | None:
        """The slot that alone is to serve a prefix whose copies are given up."""
        copies = self._copies.get(prefix)
        return (
            copies.home if copies is not None and (copies.is_withdrawn or self._cooled(prefix, copies, now)) else None
        )

    def replicate(self, prefix: bytes, home: int, wait_s: float, now: float) -> None:
        """It is being copied. Whether it stays hot is seen from new requests only."""
        self._copies[prefix] = Copies(home, now, wait_s)
        self._copies.move_to_end(prefix)
        if len(self._copies) > MOST_COPIES:
            self._copies.popitem(last=False)
        self._queueing.pop(prefix, None)

    def withdraw(self, prefix: bytes) -> None:
        """Its copies are given up, until it is hot again."""
        self._copies[prefix].is_withdrawn = True

    def forget(self, slot: int) -> None:
        """The worker there is gone."""
        for prefix in [prefix for prefix, copies in self._copies.items() if copies.home == slot]:
            del self._copies[prefix]

    def _cooled(self, prefix: bytes, copies: Copies, now: float) -> bool:
        if now - copies.since < self._window_s:
            return False
        queueing = self._queueing.get(prefix)
        if queueing is None or not queueing.newer_count:
            return True
        return queueing.newer_s / queueing.newer_count * self._growth <= copies.wait_s

    def _samples(self) -> int:
        return len(self._older) + len(self._newer)

    def _age(self) -> None:
        sample = self._newer.popleft()
        _, queueing, seconds = sample
        queueing.newer_s -= seconds
        queueing.newer_count -= 1
        if not queueing.newer_count:  # no drift of floats
            queueing.newer_s = 0.0
        queueing.older_s += seconds
        queueing.older_count += 1
        self._older.append(sample)

    def _expire(self) -> None:
        _, queueing, seconds = self._older.popleft()
        queueing.older_s -= seconds
        queueing.older_count -= 1
        if not queueing.older_count and not queueing.newer_count and self._queueing.get(queueing.prefix) is queueing:
            del self._queueing[queueing.prefix]
