"""The order of a worker's queue: groups by cached share, slots in proportion, nobody starved."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_local_scheduler import PlainLocalScheduler

from prebled.core.local_scheduler import LocalScheduler, Waiting


def test_each_round_gives_every_group_its_number_of_slots() -> None:
    waiting = [Waiting(10, group, arrival) for arrival, group in enumerate(list(range(10)) * 11)]
    order = LocalScheduler().order(waiting)
    for start in (0, 55):
        shares = Counter(waiting[index].cached_tokens for index in order[start : start + 55])
        if start == 0:
            assert shares == {group: group + 1 for group in range(10)}  # 10 + 9 + ... + 1 = 55
    assert sorted(order) == list(range(110))


@pytest.mark.parametrize(("cached", "group"), [(0, 0), (9, 0), (10, 1), (63, 6), (99, 9), (100, 9)])
def test_the_group_is_the_tenth_of_the_cached_share(cached: int, group: int) -> None:
    """63 of 100 is group 6: it goes before an older one of group 5 and after a younger one of group 7."""
    lower, higher = Waiting(100, max(group - 1, 0) * 10, 0), Waiting(100, min(group + 1, 9) * 10, 2)
    order = LocalScheduler().order([lower, Waiting(100, cached, 1), higher])
    if group < 9:
        assert order.index(2) < order.index(1)
    if group > 0:
        assert order.index(1) < order.index(0)


def test_within_a_group_first_come_first_served() -> None:
    waiting = [Waiting(100, 50, arrival) for arrival in (7, 3, 9, 1)]
    assert LocalScheduler().order(waiting) == [3, 1, 0, 2]


def test_a_request_moves_up_when_its_prefix_is_computed() -> None:
    scheduler = LocalScheduler()
    before = [Waiting(100, 50, 0), Waiting(100, 0, 1)]
    assert scheduler.order(before) == [0, 1]
    assert scheduler.order([Waiting(100, 50, 0), Waiting(100, 90, 1)]) == [1, 0]


def test_asking_again_changes_nothing() -> None:
    scheduler = LocalScheduler()
    waiting = [Waiting(10, arrival % 10, arrival) for arrival in range(40)]
    first = scheduler.order(waiting)
    assert [scheduler.order(waiting) for _ in range(3)] == [first] * 3


def test_shares_hold_over_single_slots_as_over_one_batch() -> None:
    """Taken one at a time, with a steady backlog, groups still get slots in proportion."""
    scheduler = LocalScheduler()
    waiting = [Waiting(10, group, group) for group in range(10)]
    taken: Counter[int] = Counter()
    for arrival in range(10, 10 + 55 * 8):
        chosen = waiting.pop(scheduler.order(waiting)[0])
        taken[chosen.cached_tokens] += 1
        waiting.append(Waiting(10, chosen.cached_tokens, arrival))
    assert taken == {group: 8 * (group + 1) for group in range(10)}


def test_a_group_that_was_empty_saves_up_nothing() -> None:
    scheduler = LocalScheduler()
    waiting = [Waiting(10, 9, arrival) for arrival in range(100)]
    for _ in range(60):
        waiting.pop(scheduler.order(waiting)[0])
    waiting += [Waiting(10, 0, 1000 + arrival) for arrival in range(20)]
    first = scheduler.order(waiting)[:11]
    assert sum(waiting[index].cached_tokens == 0 for index in first) == 1


def test_odd_numbers_do_no_harm() -> None:
    odd = [Waiting(0, 0, 0), Waiting(5, 9, 1), Waiting(5, -1, 2)]
    assert sorted(LocalScheduler().order(odd)) == [0, 1, 2]
    assert LocalScheduler().order([]) == []
    assert LocalScheduler(groups=1).order(odd) == [0, 1, 2]
    with pytest.raises(ValueError, match="0"):
        LocalScheduler(groups=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_no_request_waits_longer_than_the_stated_bound(seed: int, groups: int, batch: int, spiteful: bool) -> None:
    """With k older ones beside it a request is taken within (k + 1) (patience + 1) slots: arrivals never end, shares
    change at will, and a spiteful cache always keeps the oldest uncached and all others fully cached."""
    chance = random.Random(seed)
    scheduler = LocalScheduler(groups)
    arrivals = iter(range(10**6))
    cached: dict[int, int] = {}
    limits: dict[int, int] = {}
    slots = 0
    for _ in range(120):
        for _ in range(chance.randint(batch, 2 * batch) if len(cached) < 40 else batch):
            arrival = next(arrivals)
            limits[arrival] = slots + (len(cached) + 1) * (scheduler.patience + 1)
            cached[arrival] = chance.randint(0, 100)
        oldest = min(cached)
        for arrival in cached:
            if spiteful:
                cached[arrival] = 0 if arrival == oldest else 100
            elif chance.random() < 0.3:
                cached[arrival] = chance.randint(0, 100)
        waiting = [Waiting(100, share, arrival) for arrival, share in cached.items()]
        chance.shuffle(waiting)
        order = scheduler.order(waiting)
        assert sorted(order) == list(range(len(waiting)))
        for index in order[:batch]:
            slots += 1
            arrival = waiting[index].arrival
            assert slots <= limits.pop(arrival)
            del cached[arrival]
        assert all(slots <= limit for limit in limits.values())


def test_cold_requests_among_cached_ones_get_a_slot_in_eleven() -> None:
    """Behind 20 cached ones, and with another for each that is taken, so that longest-match-first never took one."""
    scheduler = LocalScheduler()
    cold = [Waiting(2000, 0, arrival) for arrival in (20, 21, 22)]
    waiting = [*(Waiting(100, 95, arrival) for arrival in range(20)), *cold]
    slots = []
    for slot in range(40):
        chosen = waiting.pop(scheduler.order(waiting)[0])
        if chosen in cold:
            slots.append(slot)
        else:
            waiting.append(Waiting(100, 95, 100 + slot))
    assert slots == [1, 12, 23]


def follow(issued: list[int], scheduler: LocalScheduler) -> list[int]:
    """The new order, made from what is left of the last one as the hook in SGLang does."""
    came = scheduler.slip_in()
    if came is None:
        return scheduler.arrange()
    for slot, arrival in came:
        issued.insert(slot, arrival)
    return issued


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 12), st.sampled_from(["fixed", "changing", "spiteful"]), st.integers(1, 120)
)
def test_orders_as_the_plain_one(seed: int, groups: int, shares: str, most_waiting: int) -> None:
    """Whatever comes, goes (from the front or from the middle), comes back, or changes its share, the order is the one
    worked out from scratch, given whole or by what is new in it."""
    chance = random.Random(seed)
    plain, whole, told = PlainLocalScheduler(groups), LocalScheduler(groups), LocalScheduler(groups)
    assert told.patience == plain.patience
    arrivals = iter(range(10**6))
    cached: dict[int, int] = {}
    taken: list[int] = []
    issued: list[int] = []
    for _ in range(60):
        for _ in range(min(chance.choice([0, 1, 2, 30]), most_waiting - len(cached))):
            cached[next(arrivals)] = chance.randint(0, 100)
        if taken and chance.random() < 0.1:  # retracted: back in the queue, at its old age
            cached[taken.pop(chance.randrange(len(taken)))] = chance.randint(0, 100)
        for arrival in cached:
            if shares == "spiteful":
                cached[arrival] = 0 if arrival == min(cached) else 100
            elif shares == "changing" and chance.random() < 0.1:
                cached[arrival] = chance.randint(0, 100)
            told.put(arrival, 100, cached[arrival])
        waiting = [Waiting(100, share, arrival) for arrival, share in cached.items()]
        chance.shuffle(waiting)
        expected = [waiting[index].arrival for index in plain.order(waiting)]
        assert [waiting[index].arrival for index in whole.order(waiting)] == expected
        issued = follow([arrival for arrival in issued if arrival in cached], told)
        assert issued == told.arrange() == expected
        count = len(cached) if chance.random() < 0.1 else min(chance.randint(0, 8), len(cached))
        gone = expected[:count] if chance.random() < 0.8 else chance.sample(expected, count)
        taken += gone
        told.drop(gone)
        for arrival in gone:
            del cached[arrival]


def test_what_goes_before_it_was_ordered_was_not_taken() -> None:
    scheduler, other = LocalScheduler(), LocalScheduler()
    for one in (scheduler, other):
        one.put(0, 100, 0)
        one.put(1, 100, 95)
        assert one.arrange() == [1, 0]
    scheduler.put(2, 100, 95)
    scheduler.drop([2, 17])
    scheduler.drop([1])
    scheduler.put(1, 100, 95)
    assert scheduler.slip_in() == []
    assert scheduler.arrange() == other.arrange() == [1, 0]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), max_size=30), st.integers(1, 5))
def test_every_rank_finds_the_same_order(sizes: list[tuple[int, int]], batch: int) -> None:
    ranks = [LocalScheduler(), LocalScheduler()]
    waiting = [Waiting(prompt, cached, arrival) for arrival, (cached, prompt) in enumerate(sizes)]
    while waiting:
        orders = [rank.order(waiting) for rank in ranks]
        assert orders[0] == orders[1]
        taken = set(orders[0][:batch])
        waiting = [request for index, request in enumerate(waiting) if index not in taken]
