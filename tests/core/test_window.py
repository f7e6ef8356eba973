"""The history window: sums by hand, and against sums made anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sights import COST

from prebled.core import window as window_module
from prebled.core.load import FIRST_OUTPUT_GUESS
from prebled.core.window import Assigned, Window

SLOTS = np.arange(3)


def totals(window: Window) -> list[list[float]]:
    prefill_s, output_tokens, context_tokens = window.sums(SLOTS)
    return [prefill_s.tolist(), COST.decode_s(output_tokens, context_tokens).tolist()]


def test_prefill_and_decode_of_what_was_assigned() -> None:
    window = Window(100.0)
    first = window.assign(0, 2.0, 3000, 0.0)
    window.assign(0, 1.0, 1000, 10.0)
    window.assign(2, 0.5, 500, 20.0)
    guess_s = FIRST_OUTPUT_GUESS * 1e-3
    assert totals(window) == [pytest.approx([3.0, 0, 0.5]), pytest.approx([2 * guess_s, 0, guess_s])]
    window.ended(first, 100)
    window.ended(first, 100)
    assert totals(window)[1] == pytest.approx([2 * 0.1, 0, guess_s])  # at the mean output of each worker
    window.advance(99.9)
    assert totals(window)[0] == pytest.approx([3.0, 0, 0.5])
    window.advance(100.0)
    assert totals(window) == [pytest.approx([1.0, 0, 0.5]), pytest.approx([guess_s, 0, guess_s])]


def test_a_pause_is_caught_up_with_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "EXPIRED_PER_STEP", 2)
    window = Window(1.0)
    for _ in range(5):
        window.assign(0, 1.0, 1, 0.0)
    counts = []
    for _ in range(3):
        window.advance(9.0)
        counts.append(totals(window)[0][0])
    assert counts == [3, 1, 0]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "MOST_REQUESTS", 3)
    window = Window(1e9)
    for _ in range(50):
        window.assign(0, 1.0, 1, 0.0)
        window.advance(0.0)
    assert totals(window)[0][0] == 3


def test_a_worker_that_begins_anew_has_nothing_assigned() -> None:
    window = Window(100.0)
    old = window.assign(1, 1.0, 10, 0.0)
    window.forget(1)
    window.assign(1, 0.25, 10, 1.0)
    window.ended(old, 9)
    window.undo(old)
    window.advance(100.0)
    assert totals(window)[0] == [0, 0.25, 0]
    window.forget(7)  # never seen: nothing to forget


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 40)), max_size=60))
def test_any_sequence_sums_up(steps: list[tuple[int, int, int]]) -> None:
    window, now, kept = Window(50.0), 0.0, list[tuple[int, Assigned]]()
    for action, slot, number in steps:
        now += number / 4
        window.advance(now)
        kept = [(where, one) for where, one in kept if one.time > now - 50.0]
        if action <= 1:
            kept.append((slot, window.assign(slot, number * 0.1, number, now)))
        elif action == 2 and kept:
            window.ended(kept[number % len(kept)][1], number)
        elif action == 3 and kept:
            window.undo(kept.pop(number % len(kept))[1])
        expected_s = [sum(one.prefill_s for where, one in kept if where == slot) for slot in range(3)]
        assert totals(window)[0] == pytest.approx(expected_s, abs=1e-9)
        for slot in range(3):
            own = [one for where, one in kept if where == slot]
            outputs = [one.output_tokens for one in own if one.output_tokens is not None]
            mean = sum(outputs) / len(outputs) if outputs else FIRST_OUTPUT_GUESS
            assert totals(window)[1][slot] == pytest.approx(len(own) * mean * 1e-3)
