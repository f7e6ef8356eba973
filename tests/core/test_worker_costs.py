"""Workers that cost differently: each is priced, booked and loaded by its own model."""

from __future__ import annotations

from collections import deque

import pytest
from sights import COST, sight
from test_load import COST as LOAD_COST

from prebled.core.cost import CostModel
from prebled.core.e2 import E2
from prebled.core.load import FIRST_OUTPUT_GUESS, Loads
from prebled.core.placing import Placer
from prebled.core.policies import POLICIES, make_policy
from prebled.core.prefix_tree import PrefixTree
from prebled.core.requests import Request
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.core.workers import Candidates, Worker
from prebled.messages import Capacity
from prebled.settings import CoreSettings

SLOW = CostModel(0.0, 0.0, 2e-3, 0.0, 4e-6, 0.0, 3e-3, 1e-6)
"""Twice as slow as `COST` a token, and slower with context."""

TWICE = CostModel(0.0, 0.0, 2e-3, 0.0, 0.0, 0.0, 2e-3, 0.0)
"""Just twice as slow as `COST`."""

PROMPT = 1000


def test_each_candidate_is_priced_by_its_own_model() -> None:
    seen = sight([0, 0, 600], costs={1: SLOW, 2: SLOW})
    expected = [model.prefill_s(PROMPT - held, PROMPT) for model, held in ((COST, 0), (SLOW, 0), (SLOW, 600))]
    assert seen.prefill_s().tolist() == pytest.approx(expected)
    assert [seen.cost(index) for index in range(3)] == [COST, SLOW, SLOW]
    outputs, contexts = seen.kv_tokens + 30, seen.kv_tokens + 500
    assert seen.decode_s(outputs, contexts).tolist() == pytest.approx(
        [model.decode_s(30, 500) for model in (COST, SLOW, SLOW)]
    )
    assert list(E2(CoreSettings()).choose(seen).prefill_s) == pytest.approx(expected)


def test_recomputation_is_priced_alike_on_fast_and_slow_workers() -> None:
    seen = sight([0, 0, 500], costs={1: TWICE, 2: TWICE}, wait_s=[1.5, 0.0, 0.0])
    # wait + own prefill + 2 * the seconds that the median worker, one of the slow ones, would take
    choice = E2(CoreSettings()).choose(seen)
    assert list(choice.total_s) == pytest.approx([1.5 + 1 + 2 * 2, 2 + 2 * 2, 1 + 2 * 1])
    assert seen.speed.tolist() == pytest.approx([2, 1, 1])
    alike = sight([0, 0], costs={0: TWICE, 1: TWICE})
    assert alike.speed.tolist() == [1, 1]


def test_a_new_model_prices_what_is_booked_from_then_on() -> None:
    loads = Loads(LOAD_COST)
    loads.reset(0)
    first = loads.book(0, 100, 100, 1000)
    loads.set_cost(0, SLOW)
    assert loads.seconds[0] == pytest.approx(0.1 + FIRST_OUTPUT_GUESS * 2e-3)  # as it was booked
    second = loads.book(0, 100, 100, 1000)
    assert second.prefill_s == pytest.approx(0.2 + 4e-6 * 100 * 50)
    loads.check_invariants(0, 2, sum(work.prefill_s + work.decode_s for work in (first, second)))
    loads.tokens_made(first, 10)  # counted anew, at the new price
    assert first.decode_s == pytest.approx(SLOW.decode_s(FIRST_OUTPUT_GUESS - 10, 110))
    loads.check_invariants(0, 2, sum(work.prefill_s + work.decode_s for work in (first, second)))
    for work in (first, second):
        loads.release(work)
    assert loads.seconds[0] == 0
    loads.reset(0)
    assert loads.cost(0) == LOAD_COST  # a new life begins with the model of all


def served(policy: str, rate: float, count: int, *, told: bool) -> tuple[list[int], float]:
    """Requests without a common prefix come at an even rate to a worker of `COST` and one of `TWICE`, each of which
    computes one prompt after another; how many each got, and the mean seconds to the first token. `told`: the slow
    one's model is known."""
    settings = CoreSettings()
    placer = Placer(make_policy(policy, settings), PrefixTree(max_blocks=10_000, window_s=180.0), COST, block_tokens=64)
    capacity = Capacity("m", "sim", "sim", 64, 100_000, 100_000, 100_000, 1000, 8)
    workers = [Worker(WorkerId(f"w{slot}"), slot, Epoch(1), capacity) for slot in range(2)]
    for worker in workers:
        placer.add_worker(worker)
    if told:
        placer.set_cost(1, TWICE)
    candidates = Candidates(workers)
    queues: list[deque[tuple[float, Request]]] = [deque(), deque()]  # with the time when its first token comes
    got, waited = [0, 0], 0.0
    for number in range(count):
        now = number / rate
        ends = sorted((end, slot) for slot, queue in enumerate(queues) for end, _ in queue if end <= now)
        for end, slot in ends:
            request = queues[slot].popleft()[1]
            placer.advance(end)
            placer.start(request, 0, end)
            placer.release(request, is_computed=True)
        placer.advance(now)
        request = Request(RequestId(f"r{number}"), b"", PROMPT, 1, False)
        slot = int(placer.place(request, candidates, now).worker_id[1:])
        begins = max(queues[slot][-1][0] if queues[slot] else now, now)
        end = begins + (TWICE if slot else COST).prefill_s(PROMPT, PROMPT)
        queues[slot].append((end, request))
        got[slot] += 1
        waited += end - now
    return got, waited / count


def test_a_worker_half_as_fast_gets_its_smaller_share() -> None:
    """Together they compute 1.5 prompts a second, the slow one a third of them."""
    assert served("e2", rate=0.9, count=600, told=True) == ([600, 0], pytest.approx(1.0))  # one is enough
    got, mean_s = served("e2", rate=1.5, count=600, told=True)
    assert got[1] / 600 == pytest.approx(1 / 3, abs=0.02)
    assert mean_s < 2  # neither falls behind
    for rate in (0.5, 0.9, 1.2, 1.5):
        (_, slow), mean_s = served("e2", rate, count=600, told=True)
        (_, blind), blind_s = served("e2", rate, count=600, told=False)
        assert slow < blind
        assert mean_s < 0.95 * blind_s


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_works_with_workers_that_differ(policy: str) -> None:
    got, _ = served(policy, rate=0.5, count=60, told=True)
    assert sum(got) == 60
