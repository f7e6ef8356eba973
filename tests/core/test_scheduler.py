"""The scheduler by event scripts: events in, decisions compared."""

from __future__ import annotations

import pytest
from scheduler_scripts import BLOCK, SHARED, arrived, place, ready, scheduler, tokens

from prebled.core.decisions import AbortRun, Continue, Place, Reject
from prebled.core.events import (
    DrainStarted,
    FirstToken,
    RequestCancelled,
    RequestFinished,
    RequestLost,
    SendFailed,
    Tick,
    TokensMade,
    WorkerDraining,
    WorkerLoad,
    WorkerLost,
)
from prebled.core.types import RequestId, WorkerId
from prebled.messages import Capacity


def test_first_explores_then_its_prefix_is_exploited_while_still_in_flight() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    subject.handle(ready("w1"), 0.0)
    first = place(subject, arrived("a", tokens(SHARED, (2, 70))))
    assert (first.placement.mode, first.placement.worker_id) == ("explore", "w0")
    assert (first.placement.matched_tokens, first.placement.missed_tokens) == (0, 710)
    second = place(subject, arrived("b", tokens(SHARED, (3, 70))))
    assert (second.placement.mode, second.placement.worker_id) == ("exploit", "w0")
    assert (second.placement.matched_tokens, second.placement.missed_tokens) == (640, 70)
    assert [c.worker_id for c in second.placement.candidates] == ["w0", "w1"]
    assert [c.load_s > 0 for c in second.placement.candidates] == [True, False]  # w0 is busy, the prefix outweighs it
    third = place(subject, arrived("c", tokens((5, 700))))
    assert (third.placement.mode, third.placement.worker_id) == ("explore", "w1")


def test_exact_repeat_and_strict_prefix_exploit() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    prompt = tokens((1, 300), (2, 300))
    place(subject, arrived("long", prompt))
    place(subject, arrived("elsewhere", tokens((9, 64))))
    repeat = place(subject, arrived("again", prompt)).placement
    assert (repeat.mode, repeat.worker_id, repeat.matched_tokens) == ("exploit", "w0", 576)
    for request_id in ("long", "again"):  # whose prompt is computed, and no longer waited for
        subject.handle(FirstToken(RequestId(request_id), 0), 1.0)
    prefix = place(subject, arrived("prefix", prompt[: 4 * 300])).placement
    assert (prefix.mode, prefix.worker_id, prefix.matched_tokens) == ("exploit", "w0", 256)


def test_half_cached_is_not_more_than_missed() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    place(subject, arrived("a", tokens((1, 128))))
    tie = place(subject, arrived("b", tokens((1, 128), (2, 128)))).placement
    assert (tie.mode, tie.worker_id, tie.matched_tokens) == ("explore", "w0", 128)  # cached 128, missed 128: a tie


def test_the_last_token_is_always_computed() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    expected = {60: 0, 64: 0, 65: 64, 127: 64, 128: 64, 129: 128, 192: 128}
    for count, cached in expected.items():
        prompt = tokens((count, count))
        place(subject, arrived(f"{count}-1", prompt))
        assert place(subject, arrived(f"{count}-2", prompt)).placement.matched_tokens == cached


def test_other_salts_and_models_never_match() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    prompt = tokens((1, 640))
    place(subject, arrived("a", prompt, cache_salt="x", model="m"))
    assert place(subject, arrived("b", prompt, cache_salt="y", model="m")).placement.matched_tokens == 0
    assert place(subject, arrived("c", prompt, cache_salt="x", model="n")).placement.matched_tokens == 0
    assert place(subject, arrived("d", prompt, cache_salt="x", model="m")).placement.matched_tokens == 576


def test_load_falls_with_the_first_token_and_with_the_end() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    place(subject, arrived("long", tokens((1, 20_000))))
    assert place(subject, arrived("b", tokens((2, 1000)))).placement.worker_id == "w1"
    assert place(subject, arrived("c", tokens((3, 1000)))).placement.worker_id == "w1"
    subject.handle(FirstToken(RequestId("long"), 0), 1.0)
    subject.handle(TokensMade(RequestId("long"), 9), 1.0)
    assert place(subject, arrived("d", tokens((4, 100)))).placement.worker_id == "w0"
    for name in "bcd":
        subject.handle(RequestFinished(RequestId(name), 5), 2.0)
    subject.handle(RequestFinished(RequestId("long"), 10), 2.0)
    last = place(subject, arrived("e", tokens((5, 100)))).placement
    assert last.worker_id == "w1"  # both idle: the one that was given a request longest ago
    assert [c.load_s for c in last.candidates] == [0.0, 0.0]
    subject.check_invariants()


@pytest.mark.parametrize(("queued", "worker_id"), [(0, "w0"), (200, "w1")])
def test_a_prefix_is_left_where_the_worker_reports_a_long_queue(queued: int, worker_id: str) -> None:
    """Of requests that were not placed here."""
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    prompt = tokens((1, 2000))
    assert place(subject, arrived("first", prompt)).placement.worker_id == "w0"
    subject.handle(FirstToken(RequestId("first"), 0), 1.0)
    subject.handle(WorkerLoad(WorkerId("w0"), queued, 1, 3_000), 1.0)
    assert place(subject, arrived("again", prompt)).placement.worker_id == worker_id


def test_refusals_say_why_with_numbers() -> None:
    subject = scheduler(max_waiting=1)
    assert subject.handle(arrived("a", tokens((1, 9))), 0.0) == [
        Reject(RequestId("a"), "no_worker_ready", "no worker is ready", 2.0)
    ]
    subject.handle(ready("w0"), 0.0)
    [long] = subject.handle(arrived("b", tokens((1, 31_000))), 0.0)
    assert isinstance(long, Reject)
    assert (long.code, long.retry_after_s) == ("context_length_exceeded", None)
    assert "31000" in long.message
    assert "30000" in long.message
    place(subject, arrived("c", tokens((1, 9))))
    [full] = subject.handle(arrived("d", tokens((1, 9))), 0.0)
    assert isinstance(full, Reject)
    assert (full.code, full.retry_after_s) == ("saturated", 2.0)
    subject.handle(FirstToken(RequestId("c"), 0), 0.0)  # no longer waiting
    place(subject, arrived("d", tokens((1, 9))))
    subject.handle(DrainStarted(), 0.0)
    subject.handle(FirstToken(RequestId("d"), 0), 0.0)
    [drains] = subject.handle(arrived("e", tokens((1, 9))), 0.0)
    assert isinstance(drains, Reject)
    assert drains.code == "draining"
    place(subject, arrived("f", tokens((1, 9)), continued=True))  # accepted long ago


def test_only_workers_that_can_hold_the_request_are_asked() -> None:
    subject = scheduler()
    small = Capacity("m", "sim", "sim", BLOCK, 1000, 500, 600, 1000, 8)
    subject.handle(ready("w0", capacity=small), 0.0)
    subject.handle(ready("w1"), 0.0)
    placement = place(subject, arrived("a", tokens((1, 550)))).placement
    assert [c.worker_id for c in placement.candidates] == ["w1"]


def test_a_lost_worker_gives_its_requests_back_and_is_forgotten() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    prompt = tokens((1, 640))
    assert place(subject, arrived("a", prompt)).placement.worker_id == "w0"
    assert subject.handle(WorkerLost(WorkerId("w0")), 1.0) == [Continue(RequestId("a"))]
    again = place(subject, arrived("a", prompt + tokens((7, 3)), continued=True), 1.0)
    assert (again.placement.worker_id, again.placement.matched_tokens) == ("w1", 0)
    subject.handle(ready("w0", epoch=2), 2.0)
    assert place(subject, arrived("b", prompt), 2.0).placement.worker_id == "w1"
    subject.check_invariants()


def test_a_new_epoch_of_a_known_worker_loses_the_old_one() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    place(subject, arrived("a", tokens((1, 640))))
    assert subject.handle(ready("w0", epoch=2), 1.0) == [Continue(RequestId("a"))]
    assert place(subject, arrived("b", tokens((1, 640))), 1.0).placement.matched_tokens == 0


def test_continued_requests_wait_for_a_worker_but_not_for_ever() -> None:
    subject = scheduler()
    assert subject.handle(arrived("a", tokens((1, 70)), continued=True), 10.0) == []
    assert subject.handle(arrived("b", tokens((2, 70)), continued=True), 12.0) == []
    assert subject.next_deadline() == 15.0
    assert subject.handle(Tick(), 14.9) == []
    [gone] = subject.handle(Tick(), 15.0)
    assert isinstance(gone, Reject)
    assert (gone.request_id, gone.code) == ("a", "no_worker_ready")
    [placed] = subject.handle(ready("w0"), 16.0)
    assert isinstance(placed, Place)
    assert placed.request_id == "b"
    assert subject.next_deadline() is None


def test_a_placement_that_cannot_be_sent_is_undone_and_made_anew() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    prompt = tokens((1, 640))
    place(subject, arrived("a", prompt))
    [anew] = subject.handle(SendFailed(RequestId("a"), WorkerId("w0")), 0.0)
    assert isinstance(anew, Place)
    assert (anew.placement.worker_id, anew.placement.matched_tokens) == ("w1", 0)
    subject.check_invariants()
    [refused] = subject.handle(SendFailed(RequestId("a"), WorkerId("w1")), 0.0)
    assert isinstance(refused, Reject)  # and not w0 once more, for ever
    assert (refused.code, subject.statistics().requests) == ("no_worker_ready", 0)
    assert subject.handle(SendFailed(RequestId("a"), WorkerId("w1")), 0.0) == []
    assert place(subject, arrived("b", prompt), 1.0).placement.matched_tokens == 0  # nothing was held after all
    subject.check_invariants()


def test_cancel_aborts_where_it_runs_and_twice_is_once() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    place(subject, arrived("a", tokens((1, 70))))
    assert subject.handle(RequestCancelled(RequestId("a")), 0.0) == [AbortRun(RequestId("a"), WorkerId("w0"))]
    assert subject.handle(RequestCancelled(RequestId("a")), 0.0) == []
    assert subject.handle(RequestFinished(RequestId("a"), 3), 0.0) == []
    counters = subject.statistics().counters
    assert (counters["ignored_RequestCancelled"], counters["ignored_RequestFinished"]) == (1, 1)


def test_a_lost_request_is_aborted_there_and_continues() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    place(subject, arrived("a", tokens((1, 70))))
    expected = [AbortRun(RequestId("a"), WorkerId("w0")), Continue(RequestId("a"))]
    assert subject.handle(RequestLost(RequestId("a")), 0.0) == expected


def test_a_draining_worker_gets_nothing_new() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    place(subject, arrived("a", tokens((1, 640))))
    subject.handle(WorkerDraining(WorkerId("w0")), 0.0)
    assert place(subject, arrived("b", tokens((1, 640)))).placement.worker_id == "w1"
    subject.handle(ready("w0"), 1.0)  # the same life: it still drains
    assert place(subject, arrived("c", tokens((1, 640)))).placement.worker_id == "w1"
    subject.handle(ready("w0", epoch=2), 2.0)
    assert place(subject, arrived("d", tokens((2, 640)))).placement.worker_id == "w0"


def test_a_continued_request_that_cannot_be_sent_is_parked() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    place(subject, arrived("a", tokens((1, 70)), continued=True), 1.0)
    assert subject.handle(SendFailed(RequestId("a"), WorkerId("w0")), 2.0) == []
    assert (subject.next_deadline(), subject.statistics().parked) == (7.0, 1)
    subject.check_invariants()
    [placed] = subject.handle(ready("w0"), 3.0)
    assert isinstance(placed, Place)
    subject.check_invariants()


def test_a_parked_request_that_is_cancelled_is_forgotten() -> None:
    subject = scheduler()
    subject.handle(arrived("a", tokens((1, 70)), continued=True), 0.0)
    assert subject.handle(RequestCancelled(RequestId("a")), 1.0) == []
    assert (subject.next_deadline(), subject.handle(ready("w0"), 2.0)) == (None, [])


def test_a_continued_request_that_fits_nobody_waits_then_is_told_the_sizes() -> None:
    subject = scheduler()
    small = Capacity("m", "sim", "sim", BLOCK, 1000, 500, 600, 1000, 8)
    subject.handle(ready("w0", capacity=small), 0.0)
    assert subject.handle(arrived("a", tokens((1, 580)), 40, continued=True), 0.0) == []
    [refused] = subject.handle(Tick(), 5.0)
    assert isinstance(refused, Reject)
    assert (refused.code, "620" in refused.message, "600" in refused.message) == ("context_length_exceeded", True, True)
    subject.handle(arrived("b", tokens((1, 580)), 40, continued=True), 6.0)
    [placed] = subject.handle(ready("w1"), 7.0)
    assert isinstance(placed, Place)
    assert placed.placement.worker_id == "w1"


def test_a_second_arrival_under_a_live_id_is_ignored() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    place(subject, arrived("a", tokens((1, 70))))
    assert subject.handle(arrived("a", tokens((2, 70))), 0.0) == []
    assert subject.statistics().counters["ignored_RequestArrived"] == 1


def test_a_placed_request_without_a_token_waits_a_continued_one_does_not() -> None:
    subject = scheduler(max_waiting=2)
    subject.handle(ready("w0"), 0.0)
    for number in range(5):
        place(subject, arrived(f"c{number}", tokens((1, 70)), continued=True))
    assert subject.statistics().waiting == 0
    place(subject, arrived("a", tokens((1, 70))))
    place(subject, arrived("b", tokens((1, 70))))
    [full] = subject.handle(arrived("c", tokens((1, 70))), 0.0)
    assert isinstance(full, Reject)
    assert full.code == "saturated"
    assert subject.decision(RequestId("c")) == full
    subject.handle(RequestCancelled(RequestId("a")), 0.0)
    place(subject, arrived("d", tokens((1, 70))))


def test_what_a_worker_is_thought_to_hold_never_exceeds_its_kv() -> None:
    subject = scheduler()
    tight = Capacity("m", "sim", "sim", BLOCK, 1280, 1000, 1200, 1000, 8)
    subject.handle(ready("w0", capacity=tight), 0.0)
    for number in range(6):
        place(subject, arrived(f"r{number}", tokens((number, 640))), float(number))
        assert subject.statistics().workers[0].held_tokens == min(640 * (number + 1), 1280)
    repeat = place(subject, arrived("again", tokens((4, 640))), 9.0).placement
    gone = place(subject, arrived("gone", tokens((0, 640))), 9.0).placement
    assert (repeat.matched_tokens, gone.matched_tokens) == (576, 0)


def test_a_failed_or_cancelled_prompt_is_not_held_an_unfinished_answer_is() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    for number, end in enumerate([RequestFinished(RequestId("x"), 0, failed=True), RequestCancelled(RequestId("x"))]):
        prompt = tokens((number + 1, 640))
        place(subject, arrived("x", prompt))
        subject.handle(end, 0.0)
        assert place(subject, arrived("y", prompt)).placement.matched_tokens == 0
        subject.handle(FirstToken(RequestId("y"), 0), 0.0)
        subject.handle(RequestCancelled(RequestId("y")), 0.0)
        assert place(subject, arrived("z", prompt)).placement.matched_tokens == 576
        subject.handle(RequestFinished(RequestId("z"), 1), 0.0)


def test_requests_of_an_earlier_daemon_count_as_load() -> None:
    subject = scheduler()
    for name in ("w0", "w1"):
        subject.handle(ready(name), 0.0)
    place(subject, arrived("a", tokens((1, 640))))
    subject.handle(WorkerLoad(WorkerId("w1"), 2, 3, 5000), 0.0)
    loads = {one.worker_id: one for one in subject.statistics().workers}
    assert loads[WorkerId("w1")].load_s > 0
    assert (loads[WorkerId("w1")].queued, loads[WorkerId("w1")].kv_used_tokens) == (2, 5000)
    subject.handle(WorkerLoad(WorkerId("w1"), 0, 0, 0), 0.0)
    subject.handle(WorkerLoad(WorkerId("w0"), 0, 1, 0), 0.0)  # the one that was booked
    after = {one.worker_id: one for one in subject.statistics().workers}
    assert (after[WorkerId("w1")].load_s, after[WorkerId("w0")].load_s) == (0.0, loads[WorkerId("w0")].load_s)


def test_slots_of_gone_workers_are_used_again() -> None:
    subject = scheduler()
    for number in range(50):
        name = f"pod-{number}"
        subject.handle(ready(name), number * 1000.0)
        place(subject, arrived(name, tokens((1, 640))), number * 1000.0)
        subject.handle(WorkerLost(WorkerId(name)), number * 1000.0 + 1)
        subject.check_invariants()
    assert len(subject.statistics().tree.held_blocks) == 1
