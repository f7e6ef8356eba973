"""The sequencer alone: scripts with outputs worked out by hand."""

from __future__ import annotations

import pytest
from stream_parts import EPOCH, A, B, chunk, done, frame, opened_kv, replayed

from prebled.core.types import Epoch, RunId
from prebled.daemon.sequencer import ASK_FRAMES, WINDOW_FRAMES, Output, RunsLost, Sequencer, StreamBroken
from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import Failed, GetSnapshot, Replay, Replayed


@pytest.fixture
def counts() -> StreamCounts:
    return StreamCounts()


@pytest.fixture
def sequencer(counts: StreamCounts) -> Sequencer:
    """Expects frame 1 next, with runs a and b live; asks after 0.1 s."""
    sequencer = Sequencer(EPOCH, 1, opened_kv(counts), replay_after_s=0.1, give_up_s=5, counts=counts)
    sequencer.expect(A)
    sequencer.expect(B)
    return sequencer


def test_frames_in_order_are_released_at_once(sequencer: Sequencer) -> None:
    assert sequencer.take_frame(frame(1, chunk(A, 5), chunk(B, 6)), 0) == [chunk(A, 5), chunk(B, 6)]
    assert sequencer.take_frame(frame(2, chunk(A, 7)), 0) == [chunk(A, 7)]
    assert sequencer.tick(99) == []


def test_a_late_frame_holds_back_the_later_ones(sequencer: Sequencer, counts: StreamCounts) -> None:
    assert sequencer.take_frame(frame(2, chunk(A, 2)), 0) == []
    assert sequencer.take_frame(frame(3, chunk(A, 3)), 0) == []
    assert sequencer.take_frame(frame(1, chunk(A, 1)), 0.05) == [chunk(A, 1), chunk(A, 2), chunk(A, 3)]
    assert sequencer.tick(99) == []
    assert (counts.gaps, counts.replays, counts.frames) == (0, 0, 3)


def test_doubled_frames_are_released_once(sequencer: Sequencer, counts: StreamCounts) -> None:
    sequencer.take_frame(frame(1, chunk(A, 1)), 0)
    assert sequencer.take_frame(frame(1, chunk(A, 1)), 0) == []
    sequencer.take_frame(frame(3, chunk(A, 3)), 0)
    assert sequencer.take_frame(frame(3, chunk(A, 3)), 0) == []
    assert sequencer.take_frame(frame(2, chunk(A, 2)), 0) == [chunk(A, 2), chunk(A, 3)]
    assert counts.duplicate_frames == 2


def test_frames_and_ends_of_another_epoch_are_ignored(sequencer: Sequencer, counts: StreamCounts) -> None:
    assert sequencer.take_frame(frame(1, chunk(A, 1), epoch=Epoch(6)), 0) == []
    assert sequencer.take_end(done(A, 0, epoch=Epoch(6)), 0) == []
    assert sequencer.take_replayed(Replayed(Epoch(6), 9, ()), 0) == []
    assert counts.stale_frames == 3
    assert sequencer.live_runs == {A, B}


def test_an_end_waits_for_its_last_frame(sequencer: Sequencer) -> None:
    assert sequencer.take_end(done(A, 2), 0) == []
    assert sequencer.take_frame(frame(1, chunk(A, 1)), 0) == [chunk(A, 1)]
    assert sequencer.take_frame(frame(2, chunk(A, 2), chunk(B, 9)), 0) == [chunk(A, 2), chunk(B, 9), done(A, 2)]
    assert sequencer.take_end(done(B, 2), 0) == [done(B, 2)]
    assert sequencer.live_runs == frozenset()


def test_an_end_is_passed_on_once(sequencer: Sequencer, counts: StreamCounts) -> None:
    sequencer.take_end(done(A, 1), 0)
    assert sequencer.take_end(done(A, 1), 0) == []
    assert sequencer.take_frame(frame(1), 0) == [done(A, 1)]
    assert sequencer.take_end(done(A, 1), 0) == []
    assert counts.late_ends == 2


def test_a_failure_ends_its_run_at_once_and_later_chunks_are_dropped(
    sequencer: Sequencer, counts: StreamCounts
) -> None:
    failed = Failed(EPOCH, A, "engine_failed", "out of memory")
    assert sequencer.take_end(failed, 0) == [failed]
    assert sequencer.take_frame(frame(1, chunk(A, 1), chunk(B, 2)), 0) == [chunk(B, 2)]
    assert counts.late_chunks == 1


@pytest.mark.parametrize("hint", ["frame", "done", "beat"])
def test_a_missing_frame_is_asked_for_after_a_while(sequencer: Sequencer, hint: str) -> None:
    match hint:
        case "frame":
            sequencer.take_frame(frame(3, chunk(A, 3)), 10.0)
            missing = Replay(1, 2)
        case "done":
            sequencer.take_end(done(A, 3), 10.0)
            missing = Replay(1, 3)
        case _:
            sequencer.take_last_seq(3, 10.0)
            missing = Replay(1, 3)
    assert sequencer.has_gap
    assert sequencer.tick(10.09) == []
    assert sequencer.tick(10.11) == [missing]
    assert sequencer.tick(10.12) == []


def test_an_answer_fills_the_gap(sequencer: Sequencer) -> None:
    sequencer.take_frame(frame(3, chunk(A, 3)), 0)
    assert sequencer.tick(0.2) == [Replay(1, 2)]
    answer = replayed(1, frame(1, chunk(A, 1)), frame(2, chunk(A, 2)))
    assert sequencer.take_replayed(answer, 0.21) == [chunk(A, 1), chunk(A, 2), chunk(A, 3)]
    assert not sequencer.has_gap
    assert sequencer.take_replayed(answer, 0.22) == []


def test_the_next_gap_is_asked_for_as_soon_as_the_first_is_filled(sequencer: Sequencer) -> None:
    sequencer.take_frame(frame(2, chunk(A, 2)), 0)
    sequencer.take_frame(frame(4, chunk(A, 4)), 0)
    assert sequencer.tick(0.2) == [Replay(1, 1)]
    out = sequencer.take_replayed(replayed(1, frame(1, chunk(A, 1))), 0.21)
    assert out == [chunk(A, 1), chunk(A, 2), Replay(3, 3)]


def test_a_wide_gap_is_asked_for_in_pieces(sequencer: Sequencer) -> None:
    sequencer.take_last_seq(ASK_FRAMES + 10, 0)
    assert sequencer.tick(1) == [Replay(1, ASK_FRAMES)]
    out = sequencer.take_replayed(replayed(1, *(frame(n) for n in range(1, ASK_FRAMES + 1))), 1)
    assert out == [Replay(ASK_FRAMES + 1, ASK_FRAMES + 10)]


def test_unanswered_asks_back_off_and_then_the_stream_is_given_up(counts: StreamCounts) -> None:
    sequencer = Sequencer(EPOCH, 1, opened_kv(counts), replay_after_s=0.125, give_up_s=5, counts=counts)
    sequencer.take_last_seq(1, 0)
    told: list[tuple[float, Output]] = []
    for eighth in range(200):
        told += [(eighth / 8, output) for output in sequencer.tick(eighth / 8)]
    *asks, broken = told
    assert asks == [(at, Replay(1, 1)) for at in (0.125, 0.375, 0.875, 1.875, 3.875)]
    assert broken == (7.875, StreamBroken("frame 1 was asked for 5 times and never came"))
    assert (counts.gaps, counts.replays) == (1, 5)


def test_each_gap_gets_its_own_patience(sequencer: Sequencer) -> None:
    for seq in range(1, 30):
        sequencer.take_last_seq(seq, seq)
        assert sequencer.tick(seq + 0.2) == [Replay(seq, seq)]
        assert sequencer.tick(seq + 0.5) == [Replay(seq, seq)]
        sequencer.take_frame(frame(seq), seq + 0.6)
    assert sequencer.tick(99) == []


def test_an_answer_without_what_was_asked_counts_as_none(sequencer: Sequencer) -> None:
    sequencer.take_last_seq(1, 0)
    assert sequencer.tick(0.2) == [Replay(1, 1)]
    assert sequencer.take_replayed(replayed(1), 0.25) == []
    assert sequencer.take_replayed(Replayed(EPOCH, 1, (b"\xc1",)), 0.25) == []
    assert sequencer.tick(0.3) == []
    assert sequencer.tick(0.5) == [Replay(1, 1)]


def test_a_hole_loses_the_live_runs_and_spares_later_ones(sequencer: Sequencer, counts: StreamCounts) -> None:
    c = RunId("c")
    sequencer.take_frame(frame(1, chunk(A, 1)), 0)
    sequencer.take_end(done(B, 2), 0)
    sequencer.take_frame(frame(4, chunk(A, 4)), 0)
    assert sequencer.tick(0.2) == [Replay(2, 3)]
    answer = replayed(3, frame(3, chunk(A, 3)))
    assert sequencer.take_replayed(answer, 0.3) == [RunsLost((A, B), 2, 2), GetSnapshot()]
    sequencer.expect(c)
    assert sequencer.take_frame(frame(5, chunk(A, 5), chunk(c, 1)), 0.4) == [chunk(c, 1)]
    assert sequencer.take_end(done(A, 5), 0.4) == []
    assert sequencer.take_end(done(c, 5), 0.4) == [done(c, 5)]
    assert (counts.holes, counts.late_chunks, counts.late_ends) == (1, 3, 1)


def test_an_answer_is_not_believed_beyond_what_was_asked(sequencer: Sequencer) -> None:
    sequencer.take_frame(frame(3, chunk(A, 3)), 0)
    sequencer.tick(0.2)
    lost = sequencer.take_replayed(replayed(10**15), 0.3)
    assert lost == [RunsLost((A, B), 1, 2), GetSnapshot()]
    sequencer.expect(A)
    assert sequencer.take_frame(frame(4, chunk(A, 4)), 0.4) == [chunk(A, 4)]


def test_an_unasked_answer_makes_no_hole(sequencer: Sequencer) -> None:
    assert sequencer.take_replayed(replayed(5), 0) == []
    assert sequencer.take_frame(frame(1, chunk(A, 1)), 0) == [chunk(A, 1)]


def test_frames_beyond_the_window_are_dropped_and_asked_for_later(sequencer: Sequencer, counts: StreamCounts) -> None:
    last = WINDOW_FRAMES + 3
    for seq in range(2, last + 1):
        sequencer.take_frame(frame(seq, chunk(A, seq)), 0)
    assert counts.dropped_frames == 3
    assert sequencer.tick(1) == [Replay(1, 1)]
    out = sequencer.take_replayed(replayed(1, frame(1, chunk(A, 1))), 1)
    assert out == [*(chunk(A, seq) for seq in range(1, WINDOW_FRAMES + 1)), Replay(WINDOW_FRAMES + 1, last)]


def test_dropped_runs_are_silent(sequencer: Sequencer) -> None:
    sequencer.take_end(done(A, 1), 0)
    sequencer.drop([A])
    assert sequencer.take_frame(frame(1, chunk(A, 1), chunk(B, 1)), 0) == [chunk(B, 1)]
