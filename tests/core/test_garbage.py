"""The core frees what it drops by counting references alone: the cyclic collector never finds anything in it."""

from __future__ import annotations

import gc
import subprocess
import sys
from array import array

import pytest

from prebled.core.blocks import HASH_BYTES, hash_path, namespace_seed
from prebled.core.events import (
    AnyEvent,
    FirstToken,
    KvReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    WorkerLost,
    WorkerReady,
)
from prebled.core.policies import POLICIES, make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity, KvRemoved, KvStored
from prebled.settings import CoreSettings

CAPACITY = Capacity("m", "sim", "sim", 16, 2000, 1500, 1600, 1000, 8)


def life(number: int) -> list[AnyEvent]:
    """A request with a shared prefix, from its arrival to one end or another."""
    request_id = RequestId(f"r{number}")
    prompt = array("I", [number % 5] * 200 + [number] * 100).tobytes()
    events: list[AnyEvent] = [RequestArrived(request_id, prompt, 20)]
    path = hash_path(prompt, 16, namespace_seed("", "", ""))
    if number % 3:
        events += [KvReported(WorkerId("w1"), (KvStored(b"", path[: number % 150 + 8 & ~7]),))]
        events += [FirstToken(request_id, 0), RequestFinished(request_id, 9)]
        events += [KvReported(WorkerId("w1"), (KvRemoved(path[-HASH_BYTES:] + path[-24:-16]),))]
    elif number % 2:
        events.append(RequestCancelled(request_id))
    return events


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_left_to_the_cyclic_collector(policy: str) -> None:
    settings = CoreSettings(window_s=5.0, max_blocks=400, kept_decisions=10)
    subject = GlobalScheduler(
        make_policy(policy, settings), settings, block_tokens=16, max_waiting=1000, retry_after_s=1.0
    )
    gc.collect()
    gc.disable()
    try:
        for number in range(300):
            if number % 50 == 0:
                subject.handle(WorkerLost(WorkerId("w1")), number / 10)
                for name in ("w0", "w1"):
                    subject.handle(WorkerReady(WorkerId(name), Epoch(number), CAPACITY), number / 10)
            for event in life(number):
                subject.handle(event, number / 10)
        assert subject.statistics().tree.nodes > 10
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_what_is_loaded_is_not_looked_at_again() -> None:
    code = (
        "import gc; from prebled import collector; collector.settle(); print(gc.get_freeze_count(), gc.get_threshold())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frozen, _, threshold = done.stdout.partition(" ")
    assert int(frozen) > 1000
    assert threshold.strip() == "(10000, 10, 10)"
