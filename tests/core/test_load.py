"""The live load of a worker through the life of its requests, by hand."""

from __future__ import annotations

import pytest

from prebled.core.cost import CostModel
from prebled.core.load import (
    BOOKED,
    DECODING,
    FIRST_OUTPUT_GUESS,
    OUTPUT,
    OUTPUT_MEMORY,
    WAITING_TOKENS,
    Loads,
    wait_s,
)

# 1 ms a prefill token, 2 ms a decode token; nothing for context
COST = CostModel(0.0, 0.0, 1e-3, 0.0, 0.0, 0.0, 2e-3, 0.0)


@pytest.fixture
def loads() -> Loads:
    loads = Loads(COST)
    loads.reset(0)
    loads.reset(2)
    return loads


def test_prefill_goes_at_the_first_token_decode_as_tokens_are_made(loads: Loads) -> None:
    work = loads.book(0, prompt_tokens=300, uncached_tokens=100, max_tokens=20)
    assert loads.seconds.tolist() == pytest.approx([0.1 + 0.04, 0, 0])
    loads.first_token(work)
    assert loads.seconds[0] == pytest.approx(0.04)
    loads.tokens_made(work, 15)
    assert loads.seconds[0] == pytest.approx(5 * 2e-3)
    loads.tokens_made(work, 20)
    assert loads.seconds[0] == pytest.approx(0)
    loads.release(work)
    assert loads.seconds[0] == 0


def test_no_more_output_is_expected_than_the_mean_until_it_is_outlived(loads: Loads) -> None:
    work = loads.book(0, 10, 0, max_tokens=1000)
    assert loads.seconds[0] == pytest.approx(FIRST_OUTPUT_GUESS * 2e-3)
    loads.tokens_made(work, 40)
    assert loads.seconds[0] == pytest.approx(40 * 2e-3)  # as long again as it has gone
    loads.tokens_made(work, 500)
    assert loads.seconds[0] == pytest.approx(45 * 2e-3)  # but not more than the mean
    loads.tokens_made(work, 999)
    assert loads.seconds[0] == pytest.approx(2e-3)


def test_the_mean_follows_the_outputs_that_ended(loads: Loads) -> None:
    loads.learn_output(109)
    assert loads.mean_output_tokens == pytest.approx(45 + 64 * OUTPUT_MEMORY)


def test_the_last_one_out_leaves_exactly_nothing(loads: Loads) -> None:
    works = [loads.book(0, 7, 7, 3) for _ in range(10)]
    for work in works:
        loads.release(work)
    assert loads.seconds[0] == 0.0


def test_requests_of_others_count_as_average_ones(loads: Loads) -> None:
    loads.book(0, 100, 100, 10)
    loads.report(2, 1, 2)
    assert loads.seconds[2] == pytest.approx(OUTPUT_MEMORY * (0.1 + 3 * 0.02))  # one waits, all three are to decode
    assert loads.table[DECODING:WAITING_TOKENS, 2].tolist() == [2, 3]
    loads.report(0, 1, 0)
    assert loads.seconds[0] == pytest.approx(0.12)
    loads.report(2, 0, 0)
    assert loads.seconds[2] == 0


def test_bookings_are_numbered_for_ties(loads: Loads) -> None:
    loads.book(2, 1, 1, 1)
    loads.book(0, 1, 1, 1)
    assert loads.table[BOOKED].tolist() == [2, 0, 1]


def test_what_decodes_and_what_waits_is_counted(loads: Loads) -> None:
    first, second = loads.book(0, 300, 100, 20), loads.book(0, 200, 200, 20)
    assert loads.table[DECODING:BOOKED, 0].tolist() == [0, 2, 300, 500]
    loads.first_token(second)
    loads.tokens_made(second, 7)
    assert loads.table[DECODING:BOOKED, 0].tolist() == [1, 2, 100, 507]
    loads.release(first)
    assert loads.table[DECODING:BOOKED, 0].tolist() == [1, 1, 0, 207]
    loads.release(second)
    assert loads.table[DECODING:BOOKED, 0].tolist() == [0, 0, 0, 0]


def test_the_prefill_in_progress_advances_with_time_to_its_end(loads: Loads) -> None:
    def waits() -> float:
        return float(wait_s(loads.table, loads._now)[0])

    loads.advance(10.0)
    first = loads.book(0, 500, 500, 1)
    loads.book(0, 200, 200, 1)
    assert waits() == pytest.approx(0.7)
    loads.advance(10.3)
    assert waits() == pytest.approx(0.4)
    loads.release(loads.book(0, 100, 100, 1))  # a cancelled one behind it changes nothing
    assert waits() == pytest.approx(0.4)
    loads.advance(11.0)
    assert waits() == pytest.approx(0.2)  # slower than thought: what is behind it has not begun
    loads.first_token(first)
    assert waits() == pytest.approx(0.2)
    loads.advance(11.1)
    assert waits() == pytest.approx(0.1)
    loads.advance(99.0)
    assert waits() == 0


def test_those_in_flight_slow_an_output(loads: Loads) -> None:
    works = [loads.book(0, 300, 100, 20) for _ in range(3)]
    assert loads.table[OUTPUT, 0] == pytest.approx(FIRST_OUTPUT_GUESS * 3 * 2e-3)
    loads.first_token(works[0])
    assert loads.table[OUTPUT, 0] == pytest.approx(FIRST_OUTPUT_GUESS * 3 * 2e-3)
    loads.release(works[0])
    loads.report(0, 2, 2)  # two more, of another daemon
    assert loads.table[OUTPUT, 0] == pytest.approx(FIRST_OUTPUT_GUESS * 4 * 2e-3)
