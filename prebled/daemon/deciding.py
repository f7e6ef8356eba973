"""Feeds the scheduler: one event at a time, each with the decisions it brings carried out before the next.

What carrying out a decision brings about is an event too, and waits its turn, so nothing here calls itself. The
scheduler's deadlines are kept. Not known here: what events mean, and how a decision is carried out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from prebled.core.decisions import AnyDecision
from prebled.core.events import AnyEvent, Tick
from prebled.core.scheduler import GlobalScheduler
from prebled.daemon.deadline import DeadlineTimer
from prebled.daemon.decision_log import DecisionLog
from prebled.daemon.metrics_scheduling import SchedulingMeter


class Deciding:
    """`perform` carries out one decision. `clock` in seconds."""

    def __init__(
        self, scheduler: GlobalScheduler, perform: Callable[[AnyDecision], None], clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._perform = perform
        self._clock = clock
        self._events: deque[AnyEvent] = deque()
        self._is_handling = False
        self._log = DecisionLog()
        self._deadline = DeadlineTimer(lambda: self.handle(Tick()), clock)
        self.meter = SchedulingMeter(scheduler)

    def handle(self, event: AnyEvent) -> None:
        """Feed one event and whatever its decisions bring about, in order. While a decision is carried out: in turn."""
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                for decision in self.meter.handle(self._events.popleft(), self._clock()):
                    self._log.write(decision)
                    self._perform(decision)
        finally:
            self._is_handling = False
        self._deadline.follow(self._scheduler.next_deadline())

    def stop(self) -> None:
        """Wait for no deadline any more."""
        self._deadline.cancel()
