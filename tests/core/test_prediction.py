"""Predicted against actual cached tokens, and the cause of each difference."""

from __future__ import annotations

from scheduler_scripts import BLOCK, ready, scheduler
from tree_paths import Path, chain, removed, stored

from prebled.core.decisions import Place, WantSnapshot
from prebled.core.events import (
    FirstToken,
    KvReported,
    KvSnapshotTaken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    WorkerLost,
)
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import RequestId, WorkerId
from prebled.messages import KvChange, KvStored

W0 = WorkerId("w0")
PROMPT: Path = (1, 2, 3, 4, 5, 6)


class Story:
    """One worker and what happens to it. Tokens are told in blocks."""

    def __init__(self, *, reports: bool = True) -> None:
        self.subject: GlobalScheduler = scheduler()
        self.now = 0.0
        self.subject.handle(ready("w0"), 0.0)
        if reports:
            self.subject.handle(KvSnapshotTaken(W0, ()), 0.0)

    def arrives(self, name: str, path: Path) -> int:
        """The tokens predicted; the prompt is one token longer than the path, so that all of it can be cached."""
        self.now += 1
        event = RequestArrived(RequestId(name), b"", 10, path=chain(path), prompt_tokens=len(path) * BLOCK + 1)
        [decision] = self.subject.handle(event, self.now)
        assert isinstance(decision, Place)
        return decision.placement.matched_tokens // BLOCK

    def reports(self, *changes: KvChange) -> None:
        assert self.subject.handle(KvReported(W0, changes), self.now) == []

    def starts(self, name: str, cached_blocks: int) -> None:
        self.subject.handle(FirstToken(RequestId(name), cached_blocks * BLOCK), self.now)

    def ends(self, name: str) -> None:
        self.subject.handle(RequestFinished(RequestId(name), 5), self.now)
        self.subject.check_invariants()

    def serves(self, name: str, path: Path) -> None:
        """From beginning to end, as predicted."""
        predicted = self.arrives(name, path)
        self.reports(stored((), path))
        self.starts(name, predicted)
        self.ends(name)

    def told(self, name: str) -> tuple[int, str | None]:
        """The blocks and the cause in the explanation."""
        explanation = self.subject.explanation(RequestId(name))
        assert explanation is not None
        return explanation.mispredicted_tokens // BLOCK, explanation.mispredicted

    def counted(self, cause: str) -> tuple[int, int]:
        """Requests, and by how many blocks they were mispredicted."""
        counters = self.subject.statistics().counters
        tokens = counters.get(f"mispredicted_tokens_{cause}", 0)
        return counters.get(f"mispredicted_{cause}", 0), tokens // BLOCK


def test_what_comes_true_is_counted_and_has_no_cause() -> None:
    story = Story()
    story.serves("a", PROMPT)
    assert story.arrives("b", (*PROMPT, 7)) == 6
    story.starts("b", 6)
    story.ends("b")
    assert story.told("b") == (0, None)
    counters = story.subject.statistics().counters
    assert (counters["predictions"], counters["predictions_exact"]) == (2, 2)
    assert counters["cached_tokens_predicted"] == counters["cached_tokens_actual"] == 6 * BLOCK
    assert not any(name.startswith("mispredicted") for name in counters)


def test_evicted_before_the_engine_looked() -> None:
    story = Story()
    story.serves("a", PROMPT)
    assert story.arrives("b", PROMPT) == 6
    story.reports(removed(PROMPT[:3]), stored(PROMPT[:2], PROMPT[2:]))  # and computed anew at once
    story.starts("b", 2)
    assert story.told("b") == (4, None)
    story.ends("b")
    assert story.told("b") == (4, "evicted")
    assert story.counted("evicted") == (1, 4)


def test_an_eviction_may_be_reported_after_the_first_token() -> None:
    story = Story()
    story.serves("a", PROMPT)
    story.arrives("b", PROMPT)
    story.starts("b", 2)
    story.reports(removed(PROMPT[:3]))
    story.ends("b")
    assert story.told("b") == (4, "evicted")


def test_an_eviction_beyond_what_was_missing_is_not_the_cause() -> None:
    story = Story()
    story.serves("a", PROMPT)
    story.arrives("b", PROMPT)
    story.reports(removed(PROMPT[:5]))
    story.starts("b", 2)
    story.ends("b")
    assert story.told("b") == (4, "other")


def test_what_another_request_was_still_computing() -> None:
    story = Story()
    story.arrives("a", PROMPT)
    assert story.arrives("b", PROMPT) == story.arrives("c", PROMPT) == 6
    story.starts("b", 0)
    story.ends("b")  # a is still at it
    story.reports(stored((), PROMPT))
    story.starts("a", 0)
    story.starts("c", 1)
    story.ends("a")
    story.ends("c")
    assert (story.told("b"), story.told("c")) == ((6, "not_computed"), (5, "not_computed"))
    assert story.counted("not_computed") == (2, 11)


def test_what_was_never_stored() -> None:
    story = Story()
    story.arrives("a", PROMPT)
    story.arrives("b", PROMPT)
    story.reports(stored((), PROMPT[:2]))
    story.subject.handle(RequestCancelled(RequestId("a")), story.now)
    story.starts("b", 2)
    story.ends("b")
    assert story.told("b") == (4, "never_stored")


def test_more_than_was_known() -> None:
    story = Story()
    assert story.arrives("a", PROMPT) == 0
    story.starts("a", 3)
    story.ends("a")
    assert story.told("a") == (-3, "more")
    assert story.counted("more") == (1, 3)


def test_held_and_not_used() -> None:
    story = Story()
    story.serves("a", PROMPT)
    story.arrives("b", PROMPT)
    story.starts("b", 5)
    story.ends("b")
    assert story.told("b") == (1, "other")


def test_a_snapshot_without_it_says_that_it_was_evicted() -> None:
    story = Story()
    story.serves("a", PROMPT)
    story.arrives("b", PROMPT)
    story.subject.handle(KvSnapshotTaken(W0, (stored((), PROMPT[:4]),)), story.now)
    story.starts("b", 4)
    story.ends("b")
    assert story.told("b") == (2, "evicted")


def test_a_worker_that_does_not_report_is_believed_to_have_computed_what_it_ended() -> None:
    story = Story(reports=False)
    story.arrives("a", PROMPT)
    story.arrives("b", PROMPT)
    story.starts("b", 0)
    story.starts("a", 0)
    story.ends("a")
    story.ends("b")
    assert story.told("b") == (6, "not_computed")
    story.arrives("c", PROMPT)
    story.starts("c", 1)
    story.ends("c")
    assert story.told("c") == (5, "other")


def test_a_split_between_decision_and_end_does_not_move_the_cause() -> None:
    story = Story()
    story.serves("a", PROMPT)
    story.arrives("b", PROMPT)
    story.serves("c", (*PROMPT[:4], 9))
    story.reports(removed(PROMPT[:5]))
    story.serves("d", (*PROMPT[:2], 9))
    story.starts("b", 4)
    story.ends("b")
    assert story.told("b") == (2, "evicted")


def test_a_request_whose_worker_is_lost_is_settled_as_well() -> None:
    story = Story()
    story.serves("a", PROMPT)
    story.arrives("b", PROMPT)
    story.starts("b", 2)
    story.subject.handle(WorkerLost(W0), story.now)
    assert story.told("b") == (4, "other")


def test_a_gap_in_the_reports_makes_the_scheduler_want_a_snapshot() -> None:
    story = Story()
    lost = stored(PROMPT[:3], PROMPT[3:])
    assert story.subject.handle(KvReported(W0, (lost,)), 1.0) == [WantSnapshot(W0)]
    assert story.subject.handle(KvSnapshotTaken(W0, (stored((), PROMPT[:3]), lost)), 2.0) == []
    assert story.arrives("a", PROMPT) == 6
    assert story.subject.handle(KvSnapshotTaken(W0, (KvStored(b"?" * 8, b"!" * 8),)), 20.0) == [WantSnapshot(W0)]
    counters = story.subject.statistics().counters
    assert (counters["kv_unknown_parents"], counters["kv_snapshots"], counters["kv_snapshots_wanted"]) == (2, 3, 2)
