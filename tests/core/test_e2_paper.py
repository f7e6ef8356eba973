"""The paper's E2 by hand: 1 ms a prefill and a decode token, 45 output tokens until any are known."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from sights import BLOCK, path, sight, tree

from prebled.core.e2_paper import E2Paper
from prebled.core.load import Work
from prebled.core.sight import Choice, Sight
from prebled.settings import CoreSettings

SETTINGS = CoreSettings(window_s=100.0, paper_rebalance_floor_s=1.0)


def book(policy: E2Paper, seen: Sight, slot: int | None = None) -> tuple[Choice, Work]:
    """Carry a choice out; `slot`: on another worker than the chosen one."""
    choice = policy.choose(seen)
    chosen = choice.chosen if slot is None else slot
    uncached = seen.prompt_tokens - int(seen.cached_tokens[chosen])
    work = Work(chosen, seen.prompt_tokens, uncached, 100)
    work.prefill_s = uncached * 1e-3
    policy.booked(seen, choice, work)
    return choice, work


def load(policy: E2Paper, slot: int, prefill_tokens: int, now: float = 0.0) -> Work:
    """So much prefill assigned to a worker."""
    return book(policy, sight([0] * 3, prompt=prefill_tokens, now=now), slot)[1]


@pytest.mark.parametrize(
    ("cached", "mode", "chosen"),
    [
        ([0, 501, 0], "exploit", 1),
        ([0, 500, 300], "explore", 2),  # ties explore: 0.3 + 1.0, 0.4 + 0.5, 0.045 + 0.7: the least
        ([600, 600, 599], "exploit", 0),  # of those that hold the longest, by load
        ([999, 0, 0], "exploit", 0),
    ],
)
def test_exploit_iff_less_is_missed_than_cached(cached: list[int], mode: str, chosen: int) -> None:
    policy = E2Paper(SETTINGS)
    for slot, prefill_tokens in enumerate([255, 355, 0]):
        load(policy, slot, prefill_tokens)
    choice = policy.choose(sight(cached))
    assert (choice.mode, choice.chosen, choice.adjusted) == (mode, chosen, ())
    assert choice.load_s.tolist() == pytest.approx([0.3, 0.4, 0.045])
    assert choice.total_s[chosen] == pytest.approx(choice.load_s[chosen] + choice.prefill_s[chosen])


def test_load_is_that_of_the_window() -> None:
    policy = E2Paper(SETTINGS)
    work = load(policy, 0, 1000, now=0.0)
    policy.finished(work, 200)
    policy.released(work, is_computed=True)
    assert policy.choose(sight([0] * 3, now=99.0)).load_s.tolist() == pytest.approx([1.2, 0, 0])
    assert policy.choose(sight([0] * 3, now=100.0)).load_s.tolist() == [0, 0, 0]


def test_what_never_reached_its_worker_is_no_load() -> None:
    policy = E2Paper(SETTINGS)
    policy.released(load(policy, 0, 1000), is_computed=False)
    load(policy, 1, 1000)
    policy.forgot(1)
    assert policy.choose(sight([0] * 3)).load_s.tolist() == [0, 0, 0]


def test_what_would_be_evicted_counts() -> None:
    caches = tree(2, capacity_blocks=20)
    for slot, name in enumerate([1, 2]):
        for _ in range(3 if slot == 0 else 1):
            caches.book(caches.match(path(name, 10)), slot, 0.0)
    caches.book(caches.match(path(3, 10)), 1, 1.0)
    choice = E2Paper(SETTINGS).choose(sight([0, 0], prompt=13 * BLOCK, caches=caches))
    # w0 has 10 blocks free and loses 3 of what all requests share; w1 has none and loses 10, and 3, at a half each
    assert choice.eviction_s is not None
    assert choice.eviction_s.tolist() == pytest.approx([0.192, (0.640 + 0.192) / 2])
    assert choice.total_s.tolist() == pytest.approx([0.832 + 0.192, 0.832 + 0.416])
    assert choice.chosen == 0


def test_evictions_beyond_the_eight_cheapest_are_worked_out_while_they_can_decide() -> None:
    caches = tree(12, capacity_blocks=10)
    for slot in range(10):
        caches.book(caches.match(path(slot, 10)), slot, 0.0)
    rows = sight([128] * 9 + [64] + [0, 0], prompt=10 * BLOCK, caches=caches)
    choice = E2Paper(SETTINGS).choose(rows)
    # 0.512 + what is evicted (8 blocks) is more than 0.640 on an empty worker
    assert choice.eviction_s is not None
    assert choice.eviction_s[:9].tolist() == pytest.approx([0.512] * 9)
    assert choice.chosen == 10


def test_a_heavy_worker_is_relieved_until_under_the_threshold() -> None:
    policy = E2Paper(SETTINGS)
    load(policy, 0, 2000)
    load(policy, 1, 1500)
    load(policy, 2, 1300)
    held = sight([960, 0, 0])
    choice, _ = book(policy, held)
    assert (choice.mode, choice.chosen) == ("explore", 2)
    assert choice.adjusted == ("rebalanced: the load of w0 is over 1.5 times the least, 2.04 s to 1.34 s of w2",)
    assert policy.choose(sight([960, 0, 960])).chosen == 0  # 2.39 s on w2 now, 2.04 s on w0: under it


def test_near_nothing_ratios_mean_nothing() -> None:
    policy = E2Paper(SETTINGS)
    load(policy, 0, 900)
    choice = policy.choose(sight([960, 0, 0]))
    assert (choice.chosen, choice.adjusted) == (0, ())


def test_exploring_is_steered_to_the_worker_dominated_by_decode() -> None:
    policy = E2Paper(SETTINGS)
    work = load(policy, 0, 100)
    policy.finished(work, 400)
    load(policy, 1, 100)
    choice = policy.choose(sight([0, 0, 0]))
    assert (choice.mode, choice.chosen) == ("explore", 0)
    assert choice.adjusted == ("steered: 80 % of the load of w0 is decode, over 70 %",)
    assert policy.choose(sight([0, 600, 0])).chosen == 1  # exploiting is not steered
    policy.finished(load(policy, 0, 200), 1000)  # 2 requests of 700: 1.4 s of 1.7 s, but over the floor and 1.5 times
    assert policy.choose(sight([0, 0, 0])).adjusted == ()


def wait(policy: E2Paper, now: float, seconds: float) -> Choice:
    """A request that shares the prefix on w0 gets its first token after so much queueing."""
    choice, work = book(policy, sight([960, 0, 0], now=now, hashes=path(9, 15)))
    policy.started(work, now + seconds + work.prefill_s)
    return choice


def test_a_prefix_whose_queue_doubled_is_copied_once() -> None:
    policy = E2Paper(SETTINGS)
    load(policy, 1, 100)
    assert wait(policy, 0.0, 1.0).adjusted == ()
    assert wait(policy, 70.0, 4.0).adjusted == ()
    hot = wait(policy, 80.0, 4.0)
    assert (hot.mode, hot.chosen) == ("explore", 2)  # the least loaded of the others
    assert hot.adjusted == (
        "replicated: the prefix's queueing time on w0 rose from 1 s to 4 s within the window; w2 gets a copy",
    )
    assert wait(policy, 81.0, 4.0).adjusted == ()


def test_a_copy_is_withdrawn_when_the_prefix_has_cooled() -> None:
    policy = E2Paper(SETTINGS)
    for now, seconds in ((0.0, 1.0), (70.0, 4.0), (80.0, 4.0)):
        wait(policy, now, seconds)
    seen = sight([960, 0, 960], hashes=path(9, 15))
    load(policy, 0, 500, now=85.0)
    assert policy.choose(replace(seen, now=85.0)).chosen == 2  # both serve it
    cooled, _ = book(policy, replace(seen, now=185.0))
    assert cooled.chosen == 0
    assert cooled.adjusted == ("withdrawn: the prefix has cooled; w0 serves it alone again, no longer 2 workers",)
    policy.forgot(0)
    assert policy.choose(replace(seen, now=186.0)).adjusted == ()  # its home is gone: whoever holds it may serve it


def test_cost_does_not_jump_when_rebalancing_begins() -> None:
    policy = E2Paper(SETTINGS)
    caches = tree(3)
    for name in range(200):
        caches.book(caches.match(path(name, 15)), 0, 0.0)
    looked = []
    original = caches.use_order
    caches.use_order = lambda slot: looked.append(slot) or original(slot)  # type: ignore[method-assign]
    load(policy, 0, 9000)
    assert policy.choose(sight([960, 0, 0], caches=caches)).adjusted[0].startswith("rebalanced")
    assert looked == [0]  # only the holder is looked at, whatever else it holds


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ({}, 2),  # loads 0.3, 0.4, 0.045 and prefills 1.0, 0.5, 0.7: the least sum
        ({"paper_load": 0.0}, 1),
        ({"paper_prefill": 0.0}, 2),
        ({"paper_load": 0.0, "paper_prefill": 0.0}, 0),  # all alike: the one given a request longest ago
    ],
)
def test_a_term_of_weight_0_decides_nothing(weights: dict[str, float], chosen: int) -> None:
    policy = E2Paper(replace(SETTINGS, paper_decode_ratio=1.0, **weights))  # nobody is steered
    for slot, prefill_tokens in enumerate([255, 355, 0]):
        load(policy, slot, prefill_tokens)
    assert policy.choose(sight([0, 500, 300], booked=[1, 2, 3])).chosen == chosen
