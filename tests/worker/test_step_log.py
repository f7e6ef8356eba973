"""The newest steps: told once to each daemon, in order, and never more than a beat may carry."""

from __future__ import annotations

from prebled.messages import StepSample
from prebled.worker.step_log import MOST, StepLog


def samples(first: int, count: int) -> tuple[StepSample, ...]:
    return tuple(StepSample(0, 0, 0, 1, first + index, 0.001, 0.001) for index in range(count))


def test_steps_are_told_once_in_order() -> None:
    log = StepLog()
    assert log.take() == ((), 0)
    log.add(samples(1, 2))
    log.add(samples(3, 1))
    assert log.take() == (samples(1, 3), 0)
    assert log.take() == ((), 0)
    log.add(samples(4, 1))
    assert log.take() == (samples(4, 1), 0)


def test_the_newest_are_told_and_the_others_counted() -> None:
    log = StepLog()
    log.add(samples(1, 10))
    log.add(samples(11, MOST))
    assert log.take() == (samples(11, MOST), 10)
    assert log.take() == ((), 0)


def test_a_new_daemon_is_told_of_the_newest_again() -> None:
    log = StepLog()
    log.tell_again()
    assert log.take() == ((), 0)
    log.add(samples(1, 5))
    log.take()
    log.add(samples(6, 2))
    log.tell_again()
    assert log.take() == (samples(1, 7), 0)
    log.add(samples(8, 3 * MOST))
    log.tell_again()
    assert log.take() == (samples(8 + 2 * MOST, MOST), 0)
