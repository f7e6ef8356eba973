"""What no caller should send and some will: it is refused or ignored, counted, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
from array import array
from pathlib import Path

import pytest

from prebled.core.decisions import Place, Reject
from prebled.core.events import (
    AnyEvent,
    FirstToken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestLost,
    SendFailed,
    TokensMade,
    WorkerDraining,
    WorkerLoad,
    WorkerLost,
    WorkerReady,
)
from prebled.core.policies import POLICIES, make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity
from prebled.settings import CoreSettings

BLOCK = 16
CAPACITY = Capacity("m", "sim", "sim", BLOCK, 640, 600, 620, 1000, 8)
A, W0 = RequestId("a"), WorkerId("w0")


def scheduler(policy: str = "e2", workers: int = 1, **core: float) -> GlobalScheduler:
    settings = CoreSettings(**core)  # type: ignore[arg-type]
    subject = GlobalScheduler(
        make_policy(policy, settings), settings, block_tokens=BLOCK, max_waiting=100, retry_after_s=1.0
    )
    for index in range(workers):
        subject.handle(WorkerReady(WorkerId(f"w{index}"), Epoch(1), CAPACITY), 0.0)
    return subject


def ask(request_id: str, count: int, token: int = 1, salt: str = "") -> RequestArrived:
    return RequestArrived(RequestId(request_id), array("I", [token] * count).tobytes(), 10, cache_salt=salt)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_workers_a_request_is_refused_with_a_reason(policy: str) -> None:
    subject = scheduler(policy, workers=0)
    [refused] = subject.handle(ask("a", 40), 0.0)
    assert refused == Reject(A, "no_worker_ready", "no worker is ready", 1.0)
    assert subject.statistics().counters == {"rejected_no_worker_ready": 1}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_that_leaves_between_choosing_and_sending_keeps_no_booking(policy: str) -> None:
    subject = scheduler(policy, workers=2)
    [placed] = subject.handle(ask("a", 320), 0.0)
    assert isinstance(placed, Place)
    gone = placed.placement.worker_id
    [anew] = subject.handle(SendFailed(A, gone), 0.0)
    assert isinstance(anew, Place)
    assert anew.placement.worker_id != gone
    loads = {worker.worker_id: (worker.requests, worker.load_s > 0) for worker in subject.statistics().workers}
    assert loads == {gone: (0, False), anew.placement.worker_id: (1, True)}
    assert {worker.worker_id: worker.held_tokens for worker in subject.statistics().workers}[gone] == 0
    subject.handle(WorkerLost(gone), 0.0)
    assert subject.handle(SendFailed(A, gone), 0.0) == []  # told too late
    subject.check_invariants()


@pytest.mark.parametrize(
    "event",
    [
        SendFailed(A, W0),
        FirstToken(A, 0),
        TokensMade(A, 3),
        RequestFinished(A, 3),
        RequestCancelled(A),
        RequestLost(A),
        WorkerLoad(WorkerId("w9"), 1, 1, 1),
        WorkerDraining(WorkerId("w9")),
        WorkerLost(WorkerId("w9")),
    ],
    ids=lambda event: type(event).__name__,
)
def test_events_of_the_unknown_are_counted_and_ignored(event: AnyEvent) -> None:
    subject = scheduler()
    for _ in range(2):
        assert subject.handle(event, 0.0) == []
    assert subject.statistics().counters == {f"ignored_{type(event).__name__}": 2}
    subject.check_invariants()


@pytest.mark.parametrize("last", [RequestFinished(A, 3), RequestCancelled(A)], ids=["finished", "cancelled"])
def test_a_request_ends_once(last: AnyEvent) -> None:
    subject = scheduler()
    subject.handle(ask("a", 40), 0.0)
    subject.handle(FirstToken(A, 0), 0.0)
    subject.handle(last, 0.0)
    for again in (last, FirstToken(A, 0)):
        assert subject.handle(again, 0.0) == []
        assert subject.statistics().counters[f"ignored_{type(again).__name__}"] == 1
    assert (subject.statistics().requests, subject.statistics().waiting) == (0, 0)
    subject.check_invariants()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK])
def test_prompts_without_a_whole_cacheable_block_are_placed_and_match_nothing(policy: str, count: int) -> None:
    subject = scheduler(policy, workers=2)
    for number in range(4):
        [placed] = subject.handle(ask(f"r{number}", count), 0.0)
        assert isinstance(placed, Place)
        assert (placed.placement.matched_tokens, placed.placement.missed_tokens) == (0, count)
    subject.check_invariants()


def test_a_prompt_longer_than_every_kv_is_refused_with_both_numbers() -> None:
    subject = scheduler(workers=2)
    [refused] = subject.handle(ask("a", 641), 0.0)
    assert isinstance(refused, Reject)
    assert (refused.code, refused.retry_after_s) == ("context_length_exceeded", None)
    assert "641" in refused.message
    assert "600" in refused.message
    assert subject.statistics().tree.blocks == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_time_that_stands_still_or_steps_back_changes_no_decision(policy: str) -> None:
    def placements(*times: float) -> list[str]:
        subject = scheduler(policy, workers=3)
        placed = []
        for number, now in enumerate(times):
            [decision] = subject.handle(ask(f"r{number}", 100, token=number % 2), now)
            assert isinstance(decision, Place)
            placed.append(decision.placement.worker_id)
            subject.check_invariants()
        return placed

    assert placements(5, 5, 5, 5, 5, 5) == placements(5, 4, -3, 5, 0, 4.9)


def test_so_many_namespaces_that_each_bound_is_passed_take_memory_of_one_size() -> None:
    """A tenant with every request. Every place that remembers namespaces or prefixes is full twice over after the first
    fifth of them: seeds (4,096), blocks and nodes (800, 100), decisions (50), visits of the window (500). What a
    million did would differ from this only by taking longer. Measured as growth of the process: what keeps 100 bytes
    for each tenant takes 4 MB more."""
    subject = scheduler("e2", workers=2, window_s=1.0, max_blocks=800, kept_decisions=50)

    def bytes_after(first: int, count: int) -> int:
        for number in range(first, first + count):
            now = number / 500
            subject.handle(ask(f"r{number:07}", BLOCK + 1, salt=f"tenant {number:07}"), now)
            subject.handle(FirstToken(RequestId(f"r{number:07}"), 0), now)
            subject.handle(RequestFinished(RequestId(f"r{number:07}"), 3), now)
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = bytes_after(0, 10_000)
    assert bytes_after(10_000, 40_000) < before + 3_000_000
    statistics = subject.statistics()
    assert statistics.tree.blocks <= 800
    assert statistics.counters["placed_explore"] == 50_000


@pytest.mark.parametrize("policy", POLICIES)
def test_namespaces_without_number_take_memory_of_one_size(policy: str) -> None:
    subject = scheduler(policy, workers=2, window_s=1.0, max_blocks=800, kept_decisions=50)

    def objects_after(first: int, count: int) -> int:
        for number in range(first, first + count):
            now = number / 500
            subject.handle(ask(f"r{number}", 100, salt=f"tenant {number}"), now)
            subject.handle(FirstToken(RequestId(f"r{number}"), 0), now)
            subject.handle(RequestFinished(RequestId(f"r{number}"), 3), now)
        assert subject.statistics().tree.blocks <= 800
        gc.collect()
        return len(gc.get_objects())

    before = objects_after(0, 1500)
    assert objects_after(1500, 3000) < before + 500
