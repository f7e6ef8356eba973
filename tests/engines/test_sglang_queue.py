"""The queue policy's hook, with SGLang's side played: what it matches, when, and that all ranks order alike."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fake_queue import PAGE, Policy, Req, calc_priority, match

from prebled.worker import sglang_plugin
from prebled.worker.sglang_matches import FOLLOWED, LAG, MOST_CHECKS, TOKENS_PER_CHECK
from prebled.worker.sglang_queue import GroupOrder


def order(hook: GroupOrder, policy: Policy, queue: list[Req]) -> list[str]:
    """The queue as the hook leaves it. What it had matched before is forgotten."""
    policy.matched.clear()
    hook(calc_priority, policy, queue, None, processed_tokens=0)  # type: ignore[arg-type]
    return [req.prompt for req in queue]


def new_hook() -> GroupOrder:
    return GroupOrder(match)  # type: ignore[arg-type]


COLD, WARM, HOT = "c" * 20, "wwww" + "-" * 4, "hhhh" * 5


@pytest.mark.parametrize("matches_itself", [False, True])
def test_orders_by_cached_share_in_place(matches_itself: bool) -> None:
    policy = Policy(matches_itself=matches_itself)
    policy.compute("wwww")
    policy.compute(HOT)
    queue = [Req(COLD), Req(HOT), Req(WARM)]
    assert order(new_hook(), policy, queue) == [HOT, WARM, COLD]
    assert policy.matched == ([] if matches_itself else [COLD, HOT, WARM])


def test_explicit_priorities_are_left_alone() -> None:
    policy = Policy(enable_priority_scheduling=True)
    policy.compute(HOT)
    assert order(new_hook(), policy, [Req(COLD), Req(HOT)]) == [COLD, HOT]


def test_matches_what_is_new_and_nothing_else_while_the_cache_stays() -> None:
    hook, policy, queue = new_hook(), Policy(), [Req(COLD), Req(HOT)]
    order(hook, policy, queue)
    assert policy.matched == [COLD, HOT]
    order(hook, policy, queue)
    assert policy.matched == []
    queue.append(Req(WARM))
    order(hook, policy, queue)
    assert policy.matched == [WARM]
    del queue[0]
    for _ in range(3):
        order(hook, policy, queue)
        assert policy.matched == []


def test_one_match_speaks_for_all_kin() -> None:
    """A hundred requests that share a page: as long as the cache does not hold it, one of them is looked up."""
    hook, policy = new_hook(), Policy()
    queue = [Req("page" + f"{number:04}") for number in range(100)]
    order(hook, policy, queue)
    assert len(policy.matched) == 100
    for _ in range(5):
        policy.compute("else")
        order(hook, policy, queue)
        assert len(policy.matched) == 1


@pytest.mark.parametrize("lag", [1, LAG])
def test_what_a_taken_request_computes_is_noticed_at_once(lag: int) -> None:
    """Among 200 others, the kin of a request that was taken are the first to be looked at, whether its pages are in
    the cache at the next order or at the one after that."""
    hook, policy = new_hook(), Policy()
    queue = [Req(f"{number:04}....") for number in range(200)]
    kin = [Req("page" + str(number) * 2) for number in range(FOLLOWED + 2)]
    queue[100:100] = kin
    order(hook, policy, queue)
    queue.remove(kin[0])
    for orders in range(1, lag + 1):
        policy.changes += 1
        if orders == lag:
            policy.compute(kin[0].prompt)
        order(hook, policy, queue)
        assert sum(req.num_matched_prefix_tokens for req in kin) == (PAGE if orders == lag else 0)
    order(hook, policy, queue)
    assert all(req.num_matched_prefix_tokens == PAGE for req in kin[1:])
    assert queue[0] in kin


def test_a_prefix_that_grows_in_chunks_is_followed() -> None:
    hook, policy = new_hook(), Policy()
    long = "abcdefghijklmnop"
    queue = [Req(f"{number:04}....") for number in range(100)] + [Req(long + "0"), Req(long + "1")]
    order(hook, policy, queue)
    first, second = (req for req in queue if req.prompt.startswith(long))
    queue.remove(first)
    for end in range(PAGE, len(long) + 1, PAGE):
        policy.compute(long[:end])
        order(hook, policy, queue)
        assert second.num_matched_prefix_tokens == end


@pytest.mark.parametrize("taken", [False, True])
def test_all_are_known_anew_within_the_stated_bound(taken: bool) -> None:
    """Nothing in common, and the cache changes at every order: every request is matched again within n + n / FOLLOWED
    orders, and in n / MOST_CHECKS + n / FOLLOWED if enough is taken; never more at once than stated."""
    hook, policy = new_hook(), Policy()
    queue = [Req(f"{number:04}" + "." * 8) for number in range(100)]
    watched = list(queue)
    for req in queue:
        policy.compute(req.prompt)
    order(hook, policy, queue)
    policy.cached.clear()
    checks = MOST_CHECKS if taken else 1
    for _ in range(math.ceil(100 / checks) + math.ceil(100 / FOLLOWED)):
        policy.changes += 1
        if taken:  # a long one comes and is taken at once
            queue.append(Req("x" * checks * TOKENS_PER_CHECK))
            order(hook, policy, queue)
            queue[:] = [req for req in queue if req in watched]
            policy.changes += 1
        order(hook, policy, queue)
        assert len(policy.matched) <= checks + FOLLOWED
    assert not any(req.num_matched_prefix_tokens for req in watched)


def test_an_eviction_moves_all_kin_down() -> None:
    hook, policy = new_hook(), Policy()
    policy.compute("pageback")
    kin = [Req("pagebacknext" + f"{number:02}") for number in range(FOLLOWED)]
    queue = [*kin, Req(WARM)]
    policy.compute("wwww")
    assert order(hook, policy, queue)[0] == kin[0].prompt
    policy.evict("pageback")
    order(hook, policy, queue)
    policy.changes += 1
    order(hook, policy, queue)
    assert [req.num_matched_prefix_tokens for req in kin] == [PAGE] * len(kin)
    assert queue[0].prompt == WARM


def test_namespaces_are_no_kin() -> None:
    hook, policy = new_hook(), Policy()
    queue = [Req("page0"), Req("page1", cache_salt="other"), Req("page2", extra_key="lora")]
    order(hook, policy, queue)
    for _ in range(3):
        policy.changes += 1
        order(hook, policy, queue)
        assert len(policy.matched) == 1
    queue.pop()
    policy.changes += 1
    order(hook, policy, queue)
    assert len(policy.matched) == 1  # the one that left had no kin to look at


def test_a_retracted_request_keeps_its_age() -> None:
    hook, policy = new_hook(), Policy()
    queue = [Req(f"{number}" * 8) for number in range(4)]
    order(hook, policy, queue)
    retracted = queue.pop(0)
    order(hook, policy, queue)
    retracted.output_ids.extend([1, 2])
    queue.append(retracted)
    assert order(hook, policy, queue)[0] == retracted.prompt


def random_orders(seed: int) -> list[list[str]]:
    """What a hook makes of a queue into which requests come and from which they are taken, in a changing cache."""
    rng = random.Random(seed)
    hook, policy, queue = new_hook(), Policy(), list[Req]()
    orders = []
    for number in range(300):
        if rng.random() < 0.7:
            queue.append(Req(rng.choice(["aaaa", "bbbb", "cccc"]) * rng.randint(1, 4) + f"{number:05}"))
        if rng.random() < 0.2:
            policy.evict(rng.choice(["aaaa", "bbbbbbbb", "c"]))
        if queue:
            orders.append(order(hook, policy, queue))
            taken = queue[: rng.randrange(3)] if rng.random() < 0.9 else rng.sample(queue, 1)
            for req in taken:
                queue.remove(req)
                policy.compute(req.prompt)
    return orders


def test_all_ranks_order_alike() -> None:
    """Ranks are processes: no order may hang on where objects lie in memory or on how strings are hashed."""
    code = "import test_sglang_queue as test; print(test.random_orders(3))"
    ranks = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(rank), "PYTHONPATH": str(Path(__file__).parent)},
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        for rank in range(2)
    ]
    assert ranks[0] == ranks[1]
    assert ranks[0].decode().strip() == str(random_orders(3))


def test_the_entry_points_do_nothing_outside_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sglang_plugin.WORKER_VARIABLE, raising=False)
    assert sglang_plugin.activate_platform() is None
    code = (
        "import sys; from prebled.worker import sglang_plugin as plugin; plugin.register(); plugin.activate_platform();"
        "assert not {'torch', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
