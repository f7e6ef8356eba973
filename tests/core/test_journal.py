"""What `explain` is told of a request: its newest decision, how often it was placed, and what came of it."""

from __future__ import annotations

from array import array

from prebled.core.decisions import Explanation, Place, Placed, Placement, Reject
from prebled.core.events import FirstToken, RequestArrived, RequestFinished, SendFailed, WorkerLost, WorkerReady
from prebled.core.journal import Journal
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity
from prebled.settings import CoreSettings

A = RequestId("a")
CAPACITY = Capacity("m", "sim", "sim", 16, 6400, 6000, 6200, 1000, 8)


def placed(worker: str) -> Placed:
    return Placed(WorkerId(worker), "explore", "e2", 0, 10)


def placement(worker: str) -> Placement:
    return Placement(WorkerId(worker), "explore", "e2", 0, 10)


def test_a_request_that_is_placed_again_keeps_its_count_and_forgets_the_old_engine() -> None:
    journal = Journal(2)
    journal.placed(A, placed("w0"))
    journal.started(A, 5)
    assert journal.explanation(A) == Explanation(A, placement("w0"), None, 1, 5, -5)
    journal.mispredicted(A, "more")
    assert journal.explanation(A) == Explanation(A, placement("w0"), None, 1, 5, -5, "more")
    journal.placed(A, placed("w1"))
    assert journal.explanation(A) == Explanation(A, placement("w1"), None, 2, None)
    refusal = Reject(A, "no_worker_ready", "gone")
    journal.refused(A, refusal)
    assert journal.explanation(A) == Explanation(A, None, refusal, 2)
    assert (journal.decision(A), len(journal)) == (refusal, 1)


def test_the_request_decided_on_longest_ago_is_forgotten_first() -> None:
    journal = Journal(2)
    for name in ("a", "b", "a", "c"):
        journal.placed(RequestId(name), placed("w0"))
    journal.started(RequestId("b"), 3)  # too late: nothing is remembered of it
    assert [journal.explanation(RequestId(name)) is not None for name in "abc"] == [True, False, True]
    assert len(journal) == 2


def test_the_scheduler_writes_it() -> None:
    settings = CoreSettings()
    subject = GlobalScheduler(make_policy("e2", settings), settings, block_tokens=16, max_waiting=9, retry_after_s=1.0)
    arrival = RequestArrived(A, array("I", [1] * 100).tobytes(), 10)
    [refused] = subject.handle(arrival, 0.0)
    assert subject.explanation(A) == Explanation(A, None, refused, 0)
    for name in ("w0", "w1"):
        subject.handle(WorkerReady(WorkerId(name), Epoch(1), CAPACITY), 0.0)
    [first] = subject.handle(arrival, 0.0)
    assert isinstance(first, Place)
    [second] = subject.handle(SendFailed(A, first.placement.worker_id), 0.0)
    assert isinstance(second, Place)
    subject.handle(FirstToken(A, 48), 1.0)
    subject.handle(RequestFinished(A, 3), 2.0)
    assert subject.explanation(A) == Explanation(A, second.placement.written_out(), None, 2, 48, -48, "more")
    subject.handle(WorkerLost(WorkerId("w0")), 3.0)
    assert subject.explanation(A) is not None
    assert subject.explanation(RequestId("b")) is None
