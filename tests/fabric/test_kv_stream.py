"""What is made of a worker's snapshots and changes, alone and behind the sequencer: scripts worked out by hand."""

from __future__ import annotations

import pytest
from naive_cache import removed, stored
from stream_parts import EPOCH, A, B, chunk, done, frame, held, kv, opened_kv, replayed, snapshot

from prebled.core.types import Epoch
from prebled.daemon import kv_stream
from prebled.daemon.kv_stream import KvStream
from prebled.daemon.sequencer import Output, RunsLost, Sequencer
from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import FRAME, GetSnapshot, KvCleared, Replay, Replayed, encode

ASK = GetSnapshot()


@pytest.fixture
def counts() -> StreamCounts:
    return StreamCounts()


@pytest.fixture
def stream(counts: StreamCounts) -> KvStream:
    """A worker that has said Hello."""
    return KvStream(patience_s=5, counts=counts)


@pytest.fixture
def opened(counts: StreamCounts) -> KvStream:
    """A worker whose empty cache is known; its first frame is 1."""
    return opened_kv(counts)


@pytest.fixture
def sequencer(opened: KvStream, counts: StreamCounts) -> Sequencer:
    """Of the same worker, with runs a and b live; asks after 0.1 s."""
    sequencer = Sequencer(EPOCH, 1, opened, replay_after_s=0.1, give_up_s=5, counts=counts)
    sequencer.expect(A)
    sequencer.expect(B)
    return sequencer


# --- the first snapshot -------------------------------------------------------------------------------------------


def test_the_snapshot_before_ready_takes_effect_at_ready(stream: KvStream, counts: StreamCounts) -> None:
    assert stream.take_snapshot(snapshot(6, stored(1, 2)), 0) == []
    assert stream.open(7, 0) == [held(stored(1, 2))]
    assert stream.take_frame(kv(7, removed(2))) == [kv(7, removed(2))]
    assert (counts.snapshots, counts.snapshots_asked, counts.stale_snapshots) == (1, 0, 0)


def test_parts_take_effect_as_one(stream: KvStream) -> None:
    for number in range(3):
        part = snapshot(6, stored(number + 1), part=number, is_last=number == 2)
        assert stream.take_snapshot(part, 0) == []
    assert stream.open(7, 0) == [held(stored(1), stored(2), stored(3))]


def test_a_worker_that_greets_twice_before_it_is_ready_tells_its_cache_anew(stream: KvStream) -> None:
    stream.take_snapshot(snapshot(6, stored(1), is_last=False), 0)
    stream.take_snapshot(snapshot(8, stored(2)), 0)
    stream.take_snapshot(snapshot(9, stored(3)), 0)
    assert stream.open(10, 0) == [held(stored(3))]


@pytest.mark.parametrize("told", ["nothing", "a part", "too early"])
def test_what_was_not_told_before_ready_is_asked_for(stream: KvStream, told: str) -> None:
    match told:
        case "a part":
            stream.take_snapshot(snapshot(6, is_last=False), 0)
        case "too early":
            stream.take_snapshot(snapshot(5), 0)
    assert stream.open(7, 0) == [ASK]
    assert stream.take_snapshot(snapshot(6, stored(4)), 0) == [held(stored(4))]


# --- later ones ---------------------------------------------------------------------------------------------------


def test_what_came_before_a_snapshot_is_not_applied_again_and_what_came_after_is(opened: KvStream) -> None:
    assert opened.want(0) == [ASK]
    frames = [kv(seq, stored(seq)) for seq in range(1, 6)]
    for one in frames[:3]:
        assert opened.take_frame(one) == [one], "a true change, whatever else is unknown"
    assert opened.take_snapshot(snapshot(2, stored(1), stored(2)), 0) == [held(stored(1), stored(2)), frames[2]]
    assert opened.take_frame(frames[3]) == [frames[3]]
    assert opened.want(0) == [ASK]
    assert opened.take_snapshot(snapshot(5, stored(9)), 0) == [held(stored(9))]
    assert opened.take_frame(frames[4]) == [], "it was on its way when the snapshot was taken"
    assert opened.take_frame(kv(6, KvCleared())) == [kv(6, KvCleared())]


def test_one_snapshot_is_awaited_at_a_time(opened: KvStream, counts: StreamCounts) -> None:
    assert [opened.want(0), opened.want(1)] == [[ASK], []]
    assert opened.take_snapshot(snapshot(0), 1) == [held()]
    assert opened.take_snapshot(snapshot(0), 1) == []
    assert opened.want(2) == [ASK]
    assert (counts.snapshots, counts.snapshots_asked, counts.stale_snapshots) == (2, 2, 1)


def test_a_snapshot_older_than_a_hole_is_not_believed(opened: KvStream, counts: StreamCounts) -> None:
    assert opened.want(0) == [ASK]
    assert opened.take_hole(4, 0) == [], "one is awaited"
    assert opened.take_snapshot(snapshot(3, stored(1)), 0) == [ASK]
    assert opened.take_snapshot(snapshot(4, stored(2)), 0) == [held(stored(2))]
    assert opened.take_hole(4, 0) == [], "the snapshot has told what was in it"
    assert counts.stale_snapshots == 1


def test_an_ask_that_brings_nothing_is_repeated(opened: KvStream) -> None:
    assert opened.tick(99) == []
    assert opened.want(100) == [ASK]
    assert [opened.tick(104.9), opened.tick(105), opened.tick(105.1)] == [[], [ASK], []]


@pytest.mark.parametrize(
    "parts",
    [
        [snapshot(3, part=1)],
        [snapshot(3, part=0, is_last=False), snapshot(3, part=2)],
        [snapshot(3, part=0, is_last=False), snapshot(4, part=1)],
    ],
)
def test_parts_that_do_not_fit_together_are_dropped(
    opened: KvStream, counts: StreamCounts, parts: list[Output]
) -> None:
    opened.want(0)
    assert [opened.take_snapshot(part, 0) for part in parts][-1] == []  # type: ignore[arg-type]
    assert counts.stale_snapshots == 1
    assert opened.take_snapshot(snapshot(4, stored(1)), 0) == [held(stored(1))]


def test_more_changes_than_can_be_kept_want_a_newer_snapshot(opened: KvStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_stream, "KEPT_FRAMES", 3)
    opened.want(0)
    for seq in range(1, 6):
        opened.take_frame(kv(seq, stored(seq)))
    assert opened.take_snapshot(snapshot(1), 0) == [ASK]
    assert opened.take_snapshot(snapshot(2), 0) == [held(), *(kv(seq, stored(seq)) for seq in (3, 4, 5))]


# --- behind the sequencer -----------------------------------------------------------------------------------------


def test_changes_keep_their_place_among_the_tokens(sequencer: Sequencer, counts: StreamCounts) -> None:
    assert sequencer.take_end(done(A, 3), 0) == []
    assert sequencer.take_frame(kv(2, stored(1, 2)), 0) == []
    assert sequencer.take_frame(frame(3, chunk(A, 8)), 0) == []
    assert sequencer.take_frame(frame(1, chunk(A, 7)), 0) == [chunk(A, 7), kv(2, stored(1, 2)), chunk(A, 8), done(A, 3)]
    assert sequencer.take_end(done(B, 4), 0) == []
    assert sequencer.take_frame(kv(4, stored(3)), 0) == [kv(4, stored(3)), done(B, 4)]
    assert (counts.frames, counts.kv_frames) == (4, 2)


def test_changes_are_applied_once_and_not_those_of_another_life(sequencer: Sequencer, counts: StreamCounts) -> None:
    assert sequencer.take_frame(kv(1, stored(1), epoch=Epoch(6)), 0) == []
    assert sequencer.take_frame(kv(1, stored(1)), 0) == [kv(1, stored(1))]
    assert sequencer.take_frame(kv(1, stored(1)), 0) == []
    assert (counts.stale_frames, counts.duplicate_frames) == (1, 1)


def test_dropped_changes_are_replayed(sequencer: Sequencer) -> None:
    sequencer.take_last_seq(2, 0)
    assert sequencer.tick(0.2) == [Replay(1, 2)]
    answer = replayed(1, kv(1, stored(1)), kv(2, removed(1)))
    assert sequencer.take_replayed(answer, 0.3) == [kv(1, stored(1)), kv(2, removed(1))]


def test_undecodable_changes_are_counted_and_asked_for_again(sequencer: Sequencer, counts: StreamCounts) -> None:
    sequencer.take_last_seq(1, 0)
    assert sequencer.tick(0.2) == [Replay(1, 1)]
    broken = encode(kv(1, stored(1))).replace(b"KvStored", b"KvStolen")
    assert sequencer.take_replayed(Replayed(EPOCH, 1, (broken,)), 0.3) == []
    assert counts.bad_frames == 1
    assert sequencer.tick(0.5) == [Replay(1, 1)]


def test_a_hole_brings_a_snapshot_and_its_runs_are_lost(sequencer: Sequencer, counts: StreamCounts) -> None:
    sequencer.take_frame(kv(4, removed(7)), 0)
    sequencer.take_frame(kv(5, stored(8)), 0)
    assert sequencer.tick(0.2) == [Replay(1, 3)]
    out = sequencer.take_replayed(replayed(3, kv(3, stored(6))), 0.3)
    assert out == [RunsLost((A, B), 1, 2), ASK, kv(3, stored(6)), kv(4, removed(7)), kv(5, stored(8))]
    assert sequencer.kv.take_snapshot(snapshot(4, stored(6)), 0.4) == [held(stored(6)), kv(5, stored(8))]
    assert (counts.holes, counts.snapshots_asked) == (1, 1)


def test_frames_are_told_apart() -> None:
    for one in (frame(3, chunk(A, 1)), kv(4, stored(1), removed(2), KvCleared())):
        assert FRAME.decode(encode(one)) == one
