"""The costs of `e2` by hand, and the words of its reasons. 1 ms a token; the weights of `CoreSettings`."""

from __future__ import annotations

import pytest
from sights import path, sight

from prebled.core.e2 import E2
from prebled.core.sharing import Sharing, landmark, landmarks
from prebled.settings import CoreSettings

POLICY = E2(CoreSettings())


@pytest.mark.parametrize(
    ("cached", "wait_s", "total_s", "mode", "chosen"),
    [
        # price 1 + 2 + 3 times the least wait; of a queue, 0.7 times the cached share is overtaken
        ([0, 0, 0], [0.3, 0.0, 0.0], [3.3, 3.0, 3.0], "explore", 1),
        ([0, 400], [0.0, 0.8], [3.0, 0.72 * 0.8 + 0.6 * 3.0], "explore", 1),  # 400 tokens are worth 1.2 s
        ([0, 400], [0.0, 1.8], [3.0, 0.72 * 1.8 + 0.6 * 3.0], "explore", 0),  # ... and the queue is longer
        ([0, 400], [0.4, 2.2], [4.6, 0.72 * 2.2 + 0.6 * 4.2], "explore", 1),  # ... 1.68 s where both are behind
        ([0, 600], [0.0, 0.0], [3.0, 1.2], "exploit", 1),
        (
            [640, 640, 576],
            [0.5, 0.4, 0.3],
            [0.552 * 0.5 + 0.36 * 3.9, 0.552 * 0.4 + 0.36 * 3.9, 0.5968 * 0.3 + 0.424 * 3.9],
            "exploit",
            1,
        ),
        ([999, 0, 0], [0.0, 0.0, 0.0], [0.003, 3.0, 3.0], "exploit", 0),
        ([500, 0], [0.0, 0.0], [1.5, 3.0], "explore", 0),  # followed, but no more is cached than missed
    ],
)
def test_costs(cached: list[int], wait_s: list[float], total_s: list[float], mode: str, chosen: int) -> None:
    choice = POLICY.choose(sight(cached, wait_s=wait_s))
    assert list(choice.total_s) == pytest.approx(total_s)
    assert (choice.mode, choice.chosen, choice.adjusted) == (mode, chosen, ())
    assert list(choice.load_s) == wait_s
    assert list(choice.prefill_s) == pytest.approx([(1000 - held) * 1e-3 for held in cached])


def test_a_longer_queue_rebalances() -> None:
    choice = POLICY.choose(sight([640, 0], wait_s=[4.0, 0.0]))  # 640 tokens are worth 1.92 s
    assert (choice.mode, choice.chosen) == ("explore", 1)
    assert choice.adjusted == ("rebalanced: w0 holds 640 more tokens, but its queue is 4 s longer",)


def test_a_lesser_holder_still_exploits_when_rebalanced() -> None:
    choice = POLICY.choose(sight([960, 896], wait_s=[2.0, 0.0]))
    assert (choice.mode, choice.chosen) == ("exploit", 1)
    assert choice.adjusted == ("rebalanced: w0 holds 64 more tokens, but its queue is 2 s longer",)


def test_sharers_make_a_copy_cheaper() -> None:
    sharing, hashes = Sharing(), path(1, 15)
    seen = sight([960, 0], wait_s=[6.0, 0.0], hashes=hashes, sharing=sharing)
    assert POLICY.choose(seen).chosen == 0  # 960 tokens are worth 0.96 * 3 s
    for _ in range(10):
        sharing.book(0, hashes)
    choice = POLICY.choose(seen)  # ... 0.96 * (1 + 2 / 3) s
    assert list(choice.total_s) == pytest.approx([0.328 * 6.0 + 0.04 * 5 / 3, 5 / 3])
    assert choice.chosen == 1
    assert choice.adjusted == (
        "replicated: 10 requests in flight on w0 share the prefix (k=10); w1 computes 960 tokens of it anew",
    )


def test_sequences_that_decode_make_prefill_dearer() -> None:
    choice = POLICY.choose(sight([0, 0], requests=[30, 10], decoding=[30, 10], wait_s=[0.0, 0.5]))
    # price 3, and 0.075 for each sequence
    assert list(choice.total_s) == pytest.approx([3.0 + 2.25, 0.5 + 3.0 + 0.75])
    assert choice.chosen == 1
    assert choice.adjusted == ("steered: w0 would cost 0.5 s less, but 30 requests are in flight there, 10 on w1",)
    held = POLICY.choose(sight([600, 500], requests=[60, 0], decoding=[60, 0]))
    assert held.chosen == 1
    assert held.adjusted == ("steered: w0 holds 100 more tokens, but 60 requests are in flight there, 0 on w1",)


def test_an_output_goes_where_few_slow_it() -> None:
    seen = sight([0, 0], prompt=100, wait_s=[0.0, 0.1], output_s=[0.9, 0.3])
    assert E2(CoreSettings(e2_output=0.0)).choose(seen).chosen == 0
    choice = E2(CoreSettings(e2_output=0.5)).choose(seen)
    assert (choice.chosen, choice.total_s[0] - choice.total_s[1]) == (1, pytest.approx(0.5 * 0.6 - 0.1))
    assert choice.adjusted[0].startswith("steered: w0 would cost 0.1 s less")


def test_who_overtakes_waits_for_the_others_only_and_they_wait_for_it() -> None:
    seen = sight([600, 0], requests=[10, 0], decoding=[4, 0], wait_s=[1.0, 0.0])
    fcfs = E2(CoreSettings(e2_overtaking=0.0, e2_overtaken=0.0)).choose(seen)
    # price 3; four decode, six wait
    assert list(fcfs.total_s) == pytest.approx([1.0 + 0.4 * 3.0 + (0.075 * 4 + 0.1 * 6) * 0.4, 3.0])
    ahead = E2(CoreSettings(e2_overtaken=0.0)).choose(seen)
    assert ahead.total_s[0] == pytest.approx(fcfs.total_s[0] - 0.7 * 0.6 * 1.0)
    choice = POLICY.choose(seen)
    assert choice.total_s[0] == pytest.approx(ahead.total_s[0] + 0.6 * 6 * 0.4)
    assert (fcfs.chosen, ahead.chosen, choice.chosen) == (0, 0, 1)
    assert choice.adjusted == ("steered: w0 holds 600 more tokens, but 10 requests are in flight there, 0 on w1",)


def test_the_prefill_in_progress_is_not_overtaken() -> None:
    choice = POLICY.choose(sight([600, 0], wait_s=[1.0, 0.0], until=[9.0, 0.0], now=0.0))
    assert choice.total_s[0] == pytest.approx(9.0 - 0.7 * 0.6 * 1.0 + 0.4 * 3.0)
    assert choice.adjusted == ("rebalanced: w0 holds 600 more tokens, but its queue is 9 s longer",)


def test_an_empty_prompt_costs_what_is_beside_it() -> None:
    assert list(POLICY.choose(sight([0, 0], prompt=0, wait_s=[1.0, 0.0])).total_s) == pytest.approx([1.0, 0.0])


def test_the_prefill_in_progress_shrinks_with_time() -> None:
    rows = {"wait_s": [1.0, 1.8], "until": [12.0, 0.0]}
    assert POLICY.choose(sight([0, 0], now=10.0, **rows)).load_s == [2.0, 1.8]
    assert POLICY.choose(sight([0, 0], now=10.5, **rows)).load_s == [1.5, 1.8]
    assert POLICY.choose(sight([0, 0], now=99.0, **rows)).load_s == [1.0, 1.8]  # what is behind it stays


def test_every_weight_is_a_setting() -> None:
    weights = {"e2_decode": 0.5, "e2_waiting": 0.25, "e2_output": 2.0, "e2_overtaking": 0.5, "e2_overtaken": 3.0}
    policy = E2(CoreSettings(e2_base_price=1.0, e2_backlog_price=2.0, e2_sharing=1.0, **weights))
    sharing, hashes = Sharing(), path(1, 15)
    sharing.book(0, hashes)
    rows = {"wait_s": [3.0, 1.0], "requests": [3, 0], "decoding": [2, 0], "output_s": [0.1, 0.0]}
    choice = policy.choose(sight([500, 0], hashes=hashes, sharing=sharing, **rows))
    beside_s = (0.5 * 2 + 0.25 * 1 + 3.0 * 0.5 * 1) * 0.5
    assert choice.total_s == pytest.approx([0.75 * 3.0 + 0.5 * 2.5 + beside_s + 2.0 * 0.1, 1.0 + 2.5])


def test_landmarks_stand_for_at_least_half() -> None:
    whole = path(3, 300)
    for blocks in range(1, 300):
        mark = landmark(whole[: 8 * blocks], blocks)
        depth = next(i for i in range(300) if whole[8 * i : 8 * i + 8] == mark) + 1
        assert blocks / 2 <= depth <= blocks


def test_landmarks_are_the_hashes_at_powers_of_two() -> None:
    whole = path(3, 300)
    for blocks in range(300):
        depths = [1 << rank for rank in range(blocks.bit_length())]
        assert landmarks(whole[: 8 * blocks]) == tuple(whole[8 * depth - 8 : 8 * depth] for depth in depths)


def test_sharing_counts_those_in_flight_with_half_of_the_prefix() -> None:
    sharing, whole = Sharing(), path(4, 64)
    held = sharing.book(0, whole)
    sharing.book(0, whole[: 8 * 10])  # 10 blocks: half of 16, not of 64
    sharing.book(1, whole)
    assert [sharing.count(0, whole, blocks) for blocks in (0, 1, 16, 64)] == [0, 2, 2, 1]
    assert sharing.count(0, path(5, 64), 64) == 0
    sharing.release(0, held)
    assert [sharing.count(0, whole, blocks) for blocks in (1, 64)] == [1, 0]
    assert sharing.count(7, whole, 64) == 0
