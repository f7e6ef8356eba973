"""The queue policy's hook, with SGLang's side played: what it matches, when, and that all ranks order alike."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from prebled.worker import sglang_plugin
from prebled.worker.sglang_queue import REMATCHED, GroupOrder


@dataclass(eq=False)
class Req:
    """As much of SGLang's Req as the hook uses."""

    name: str
    seqlen: int = 100
    num_matched_prefix_tokens: int = 0


@dataclass
class Policy:
    """SchedulePolicy and its cache in one. `cached` is what a match would find."""

    cached: dict[str, int] = field(default_factory=dict)
    size: int = 0
    matches_itself: bool = False
    enable_priority_scheduling: bool = False
    matched: list[str] = field(default_factory=list)

    @property
    def tree_cache(self) -> Policy:
        return self

    def evictable_size(self) -> int:
        return self.size

    def protected_size(self) -> int:
        return 0

    def waiting_queue_prefix_matched(self, queue: list[Req]) -> bool:
        return self.matches_itself


def match(req: Req, policy: Policy) -> None:
    policy.matched.append(req.name)
    req.num_matched_prefix_tokens = policy.cached.get(req.name, 0)


def calc_priority(policy: Policy, queue: list[Req], *args: Any, **options: Any) -> None:
    if policy.matches_itself:
        for req in queue:
            req.num_matched_prefix_tokens = policy.cached.get(req.name, 0)


def order(hook: GroupOrder, policy: Policy, queue: list[Req]) -> list[str]:
    hook(calc_priority, policy, queue, None, processed_tokens=0)  # type: ignore[arg-type]
    return [req.name for req in queue]


@pytest.mark.parametrize("matches_itself", [False, True])
def test_orders_by_cached_share_in_place(matches_itself: bool) -> None:
    policy = Policy(cached={"b": 95, "c": 50}, matches_itself=matches_itself)
    queue = [Req("a"), Req("b"), Req("c")]
    assert order(GroupOrder(match), policy, queue) == ["b", "c", "a"]
    assert policy.matched == ([] if matches_itself else ["a", "b", "c"])


def test_explicit_priorities_are_left_alone() -> None:
    policy = Policy(cached={"b": 95}, enable_priority_scheduling=True)
    assert order(GroupOrder(match), policy, [Req("a"), Req("b")]) == ["a", "b"]


def test_matches_again_only_when_the_cache_has_changed() -> None:
    hook, policy, queue = GroupOrder(match), Policy(size=64), [Req("a"), Req("b")]
    order(hook, policy, queue)
    order(hook, policy, queue)
    assert policy.matched == ["a", "b"]
    queue.append(Req("c"))
    order(hook, policy, queue)
    assert policy.matched == ["a", "b", "c"]
    policy.size, policy.cached = 128, {"b": 95}
    assert order(hook, policy, queue) == ["b", "a", "c"]
    assert sorted(policy.matched[3:]) == ["a", "b", "c"]


def test_matches_a_bounded_number_per_order_and_forgets_nobody() -> None:
    hook, policy = GroupOrder(match), Policy(size=1)
    queue = [Req(str(number)) for number in range(3 * REMATCHED)]
    order(hook, policy, queue)
    assert len(policy.matched) == len(queue)
    for _ in range(3):  # the cache changes before every order, as it does under load
        policy.matched.clear()
        for _ in range(3):
            policy.size += 1
            before = len(policy.matched)
            order(hook, policy, queue)
            assert len(policy.matched) - before == REMATCHED
        assert sorted(policy.matched) == sorted(req.name for req in queue)


def test_all_ranks_order_alike() -> None:
    rng = random.Random(3)
    ranks = [(GroupOrder(match), Policy(), list[Req]()) for _ in range(2)]
    for number in range(300):
        cached = {str(rng.randrange(number + 1)): rng.randrange(100) for _ in range(20)}
        size, taken = rng.randrange(4), rng.randrange(3)
        orders = []
        for hook, policy, queue in ranks:
            queue.append(Req(str(number)))
            policy.cached, policy.size = cached, size
            orders.append(order(hook, policy, queue))
            del queue[:taken]
        assert orders[0] == orders[1]


def test_the_entry_points_do_nothing_outside_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sglang_plugin.WORKER_VARIABLE, raising=False)
    assert sglang_plugin.activate_platform() is None
    code = (
        "import sys; from prebled.worker import sglang_plugin as plugin; plugin.register(); plugin.activate_platform();"
        "assert not {'torch', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
