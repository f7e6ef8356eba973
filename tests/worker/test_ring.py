"""The ring of frames: what it keeps, and what it says about what it has lost."""

from __future__ import annotations

import random

from prebled.worker.ring import FrameRing

PLENTY = 10**9


def test_bounds_by_count_and_by_bytes() -> None:
    by_count, by_bytes = FrameRing(3, PLENTY), FrameRing(1000, 10)
    for number in range(1, 8):
        by_count.add(b"%d" % number)
        by_bytes.add(b"%d..." % number)
    assert by_count.since(1, 99, PLENTY) == (5, [b"5", b"6", b"7"])
    assert by_bytes.since(1, 99, PLENTY) == (6, [b"6...", b"7..."])
    by_bytes.add(b"larger than the whole ring")
    assert by_bytes.since(1, 99, PLENTY) == (9, [])
    by_bytes.add(b"9")
    assert by_bytes.since(1, 99, PLENTY) == (9, [b"9"])


def test_answers_are_cut_but_never_empty() -> None:
    ring = FrameRing(100, PLENTY)
    for number in range(1, 6):
        ring.add(b"%d" % number * 10)
    assert ring.since(2, 5, 25) == (2, [b"2" * 10, b"3" * 10])
    assert ring.since(2, 5, 1) == (2, [b"2" * 10])


def test_numbering_goes_on_after_all_is_forgotten() -> None:
    ring = FrameRing(100, PLENTY)
    ring.add(b"1")
    ring.clear()
    assert (ring.next_seq, ring.since(1, 1, PLENTY)) == (2, (2, []))
    ring.add(b"2")
    assert ring.since(1, 9, PLENTY) == (2, [b"2"])


def test_any_question_is_answered_from_what_was_kept() -> None:
    rng = random.Random(1)
    ring, all_frames = FrameRing(20, 300), [b""]
    for seq in range(1, 200):
        all_frames.append(b"%d " % seq * rng.randint(1, 10))
        ring.add(all_frames[-1])
        first, last = rng.randint(1, seq + 3), rng.randint(1, seq + 3)
        begin, frames = ring.since(first, last, PLENTY)
        kept_from, kept = ring.since(1, seq, PLENTY)
        assert begin == max(first, kept_from)
        assert frames == all_frames[begin : last + 1]
        assert len(kept) <= 20
        assert sum(map(len, kept)) <= 300
