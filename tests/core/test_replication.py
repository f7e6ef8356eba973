"""When a prefix is hot, and when its copies are given up."""

from __future__ import annotations

import pytest

from prebled.core import replication as replication_module
from prebled.core.replication import Replication

HOT, OTHER = b"hot-hash", b"other-ha"


def waited(subject: Replication, now: float, *seconds: float, prefix: bytes = HOT) -> None:
    subject.advance(now)
    for each in seconds:
        subject.waited(prefix, each, now)


def test_hot_is_a_mean_that_doubled_from_one_half_of_the_window_to_the_other() -> None:
    subject = Replication(100.0, 2.0)
    waited(subject, 0.0, 1.0, 2.0)
    assert subject.heat(HOT, 0.0) is None  # nothing in the older half yet
    waited(subject, 60.0, 2.9)
    assert subject.heat(HOT, 0.0) is None  # 2.9 after 1.5
    waited(subject, 60.0, 3.1, 50.0, prefix=OTHER)
    assert subject.heat(HOT, 0.0) is None
    waited(subject, 60.0, 3.1)
    assert subject.heat(HOT, 0.0) == pytest.approx((1.5, 3.0))
    assert subject.heat(HOT, 3.0) is None  # a copy would take as long
    subject.advance(100.0)
    assert subject.heat(HOT, 0.0) is None  # the older half has left


def test_a_copied_prefix_must_get_hot_anew() -> None:
    subject = Replication(100.0, 2.0)
    waited(subject, 0.0, 1.0)
    waited(subject, 60.0, 5.0)
    subject.replicate(HOT, 3, 5.0, 60.0)
    assert subject.heat(HOT, 0.0) is None
    waited(subject, 61.0, 5.0)
    waited(subject, 112.0, 9.0)
    assert subject.heat(HOT, 0.0) is None
    waited(subject, 112.0, 20.0)
    assert subject.heat(HOT, 0.0) is not None


def test_copies_are_given_up_when_the_queue_is_down_again() -> None:
    subject = Replication(100.0, 2.0)
    subject.replicate(HOT, 3, 5.0, 0.0)
    waited(subject, 99.0, 2.0)
    assert subject.home(HOT, 99.9) is None  # younger than the window
    assert subject.home(HOT, 100.0) == 3
    waited(subject, 101.0, 4.0)
    assert subject.home(HOT, 101.0) is None  # 3 s: more than half of 5 s
    subject.withdraw(HOT)
    assert subject.home(HOT, 101.0) == 3  # and so it stays
    subject.replicate(HOT, 3, 9.0, 102.0)
    assert subject.home(HOT, 102.0) is None  # until it was hot again
    assert subject.home(OTHER, 102.0) is None


def test_copies_nobody_asks_for_are_given_up() -> None:
    subject = Replication(100.0, 2.0)
    subject.replicate(HOT, 3, 5.0, 0.0)
    assert subject.home(HOT, 100.0) == 3
    subject.forget(3)
    assert subject.home(HOT, 100.0) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication_module, "MOST_SAMPLES", 10)
    monkeypatch.setattr(replication_module, "MOST_COPIES", 4)
    subject = Replication(100.0, 2.0)
    for number in range(100):
        prefix = number.to_bytes(8, "little")
        waited(subject, 0.0, 1.0, prefix=prefix)
        subject.replicate(prefix, 0, 1.0, 0.0)
        waited(subject, 0.0, 1.0, prefix=prefix)
    subject.advance(0.0)
    assert len(subject._newer) + len(subject._older) == 10
    assert len(subject._queueing) <= 10
    assert len(subject._copies) == 4
    for _ in range(3):
        subject.advance(200.0)
    assert not subject._queueing
