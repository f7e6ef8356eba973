"""What the scheduler makes of the policies: bursts, reasons, ties, and what it remembers of them."""

from __future__ import annotations

from collections import Counter

import pytest
from scheduler_scripts import BLOCK, arrived, place, ready, scheduler, tokens

from prebled.core.events import (
    RequestFinished,
)
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import RequestId
from prebled.errors import SettingsError
from prebled.settings import CoreSettings


def test_a_burst_of_one_cold_prefix_is_neither_scattered_nor_stacked() -> None:
    subject = scheduler()
    for number in range(8):
        subject.handle(ready(f"w{number}"), 0.0)
    placed = [place(subject, arrived(f"r{i}", tokens((1, 6400), (i + 2, 700)))).placement for i in range(24)]
    assert [one.mode for one in placed[:4]] == ["explore"] + ["exploit"] * 3
    used = Counter(one.worker_id for one in placed)
    assert 2 <= len(used) <= 4  # the prefix takes as long as nine of the tails
    assert max(used.values()) <= 1.5 * 24 / len(used)
    copies = [one for one in placed if one.adjusted]
    assert len(copies) == len(used) - 1
    assert all(one.adjusted[0].startswith("replicated: ") and "(k=" in one.adjusted[0] for one in copies)
    subject.check_invariants()


def test_a_cold_request_in_a_burst_goes_elsewhere() -> None:
    subject = scheduler()
    for number in range(8):
        subject.handle(ready(f"w{number}"), 0.0)
    placed = [place(subject, arrived(f"r{i}", tokens((i, 6400)))).placement for i in range(64)]
    assert set(Counter(one.worker_id for one in placed).values()) == {8}


def test_the_reason_shows_the_eight_cheapest_and_the_chosen_one() -> None:
    subject = scheduler()
    for number in range(100):
        subject.handle(ready(f"w{number}"), 0.0)
    shared = tokens((1, 640))
    place(subject, arrived("a", shared))
    placement = place(subject, arrived("b", shared)).placement
    assert (placement.worker_id, len(placement.candidates)) == ("w0", 8)
    totals = [candidate.total_s for candidate in placement.candidates]
    assert totals == sorted(totals)
    assert placement.candidates[0].worker_id == "w0"
    subject = scheduler("cache-aware")  # compares requests in flight: it may choose one that is not among the least
    for number in range(100):
        subject.handle(ready(f"w{number}"), 0.0)
    place(subject, arrived("a", shared))
    placement = place(subject, arrived("b", shared)).placement
    assert [candidate.worker_id for candidate in placement.candidates[-2:]] == ["w7", "w0"]
    assert (placement.worker_id, len(placement.candidates)) == ("w0", 8)


def test_time_that_steps_back_stands_still() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 100.0)
    place(subject, arrived("a", tokens((1, 640))), 50.0)
    subject.handle(RequestFinished(RequestId("a"), 1), -5.0)
    assert place(subject, arrived("b", tokens((1, 640))), 0.0).placement.matched_tokens == 576


def test_round_robin_and_least_loaded() -> None:
    subject = scheduler("round-robin")
    for name in ("w0", "w1", "w2"):
        subject.handle(ready(name), 0.0)
    placed = [place(subject, arrived(f"r{i}", tokens((1, 640)))).placement.worker_id for i in range(5)]
    assert placed == ["w0", "w1", "w2", "w0", "w1"]
    subject = scheduler("least-loaded")
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    sizes = [9000, 100, 100, 100]
    placed = [place(subject, arrived(f"r{i}", tokens((1, size)))).placement.worker_id for i, size in enumerate(sizes)]
    assert placed == ["w0", "w1", "w1", "w1"]


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'guess'.*e2.*round-robin"):
        make_policy("guess", CoreSettings())


def test_only_the_last_decisions_are_kept() -> None:
    subject = GlobalScheduler(
        make_policy("e2", CoreSettings()),
        CoreSettings(kept_decisions=3),
        block_tokens=BLOCK,
        max_waiting=99,
        retry_after_s=1.0,
    )
    subject.handle(ready("w0"), 0.0)
    for number in range(5):
        place(subject, arrived(f"r{number}", tokens((1, 70))))
    assert [subject.decision(RequestId(f"r{n}")) is not None for n in range(5)] == [False, False, True, True, True]
