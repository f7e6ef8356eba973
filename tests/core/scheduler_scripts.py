"""Short words for scripts of events: a scheduler, its workers, requests of given tokens."""

from __future__ import annotations

import numpy as np

from prebled.core.cost import PROFILES
from prebled.core.decisions import Place
from prebled.core.events import (
    RequestArrived,
    WorkerReady,
)
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity
from prebled.settings import CoreSettings

BLOCK = 64
CAPACITY = Capacity(
    model="m",
    engine="sim",
    device="sim",
    block_tokens=BLOCK,
    kv_tokens=64_000,
    max_prompt_tokens=30_000,
    max_total_tokens=32_000,
    vocab_size=1000,
    max_running=8,
)


def scheduler(policy: str = "e2", **options: int) -> GlobalScheduler:
    """Priced as a GPU is: on the toy profile one sequence that decodes outweighs the prefill of a short prompt."""
    return GlobalScheduler(
        make_policy(policy, CoreSettings()),
        CoreSettings(park_s=5.0),
        block_tokens=BLOCK,
        max_waiting=options.get("max_waiting", 100),
        retry_after_s=2.0,
        cost=PROFILES["mistral-7b-a6000"],
    )


def ready(name: str, epoch: int = 1, capacity: Capacity = CAPACITY) -> WorkerReady:
    return WorkerReady(WorkerId(name), Epoch(epoch), capacity)


def tokens(*runs: tuple[int, int]) -> bytes:
    """Runs of (token, count)."""
    return np.concatenate([np.full(count, token, "<u4") for token, count in runs]).tobytes()


def arrived(name: str, prompt: bytes, max_tokens: int = 10, **more: object) -> RequestArrived:
    return RequestArrived(RequestId(name), prompt, max_tokens, **more)  # type: ignore[arg-type]


def place(subject: GlobalScheduler, event: RequestArrived, now: float = 0.0) -> Place:
    [decision] = subject.handle(event, now)
    assert isinstance(decision, Place), decision
    return decision


SHARED = (1, 640)
