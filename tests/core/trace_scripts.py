"""The situations of the golden traces. `python tests/core/trace_scripts.py` records them anew into `tests/traces/`: do
that when a policy is meant to change, and read the difference."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from prebled.core.cost import PROFILES
from prebled.core.events import (
    AnyEvent,
    DrainStarted,
    FirstToken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestLost,
    SendFailed,
    Tick,
    TokensMade,
    WorkerDraining,
    WorkerLoad,
    WorkerLost,
    WorkerReady,
)
from prebled.core.policies import POLICIES, make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.trace import encode_step, record
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity
from prebled.settings import CoreSettings

FOLDER = Path(__file__).parent.parent / "traces"
BLOCK = 4
Script = Iterator[tuple[float, AnyEvent]]


def scheduler_for(name: str) -> GlobalScheduler:
    """The scheduler that a trace was recorded with: its file is called SITUATION.POLICY.jsonl."""
    situation, policy = name.split(".")
    settings = CoreSettings(window_s=60.0, park_s=5.0, paper_rebalance_floor_s=0.05)
    return GlobalScheduler(
        make_policy(policy, settings),
        settings,
        block_tokens=BLOCK,
        max_waiting=4 if situation == "refusals" else 100,
        retry_after_s=1.0,
        cost=PROFILES["mistral-7b-a6000"],
    )


def ready(name: str, kv_tokens: int = 400, epoch: int = 1) -> WorkerReady:
    capacity = Capacity("m", "sim", "sim", BLOCK, kv_tokens, min(kv_tokens, 300), min(kv_tokens, 320), 1000, 8)
    return WorkerReady(WorkerId(name), Epoch(epoch), capacity)


def ask(name: str, *runs: tuple[int, int], continued: bool = False) -> RequestArrived:
    prompt = array("I", [token for token, count in runs for _ in range(count)])
    return RequestArrived(RequestId(name), prompt.tobytes(), 20, model="m", continued=continued)


def explore_then_exploit() -> Script:
    yield 0.0, ready("w0")
    yield 0.0, ready("w1")
    yield 1.0, ask("first", (1, 40), (2, 9))
    yield 1.0, ask("same-prefix", (1, 40), (3, 9))
    yield 1.1, ask("other", (4, 40))
    yield 1.2, ask("exact-repeat", (1, 40), (2, 9))
    for name in ("first", "same-prefix", "other", "exact-repeat"):
        yield 2.0, FirstToken(RequestId(name), 0)
    yield 2.1, TokensMade(RequestId("first"), 8)
    yield 2.2, ask("half", (4, 40), (5, 40))
    yield 2.3, ask("strict-prefix", (1, 30))
    for name in ("first", "same-prefix", "other", "exact-repeat", "half", "strict-prefix"):
        yield 3.0, RequestFinished(RequestId(name), 12)
    yield 4.0, ask("idle-workers", (6, 40))


def eviction() -> Script:
    """More than the worker can hold: the tail that was used first is gone."""
    yield 0.0, ready("w0", kv_tokens=100)
    for number in range(5):
        yield float(number), ask(f"fill-{number}", (1, 16), (number + 10, 20))
        yield number + 0.5, FirstToken(RequestId(f"fill-{number}"), 0)
        yield number + 0.6, RequestFinished(RequestId(f"fill-{number}"), 5)
    yield 5.0, ask("evicted", (1, 16), (10, 20))
    yield 5.1, ask("kept", (1, 16), (14, 20))


def worker_lost_and_joined() -> Script:
    yield 0.0, ready("w0")
    yield 0.0, ready("w1")
    yield 1.0, ask("runs", (1, 40))
    yield 1.5, FirstToken(RequestId("runs"), 0)
    yield 2.0, WorkerLost(WorkerId("w0"))
    yield 2.0, ask("runs", (1, 40), (9, 3), continued=True)
    yield 2.5, WorkerLost(WorkerId("w1"))
    yield 2.5, ask("runs", (1, 40), (9, 3), continued=True)
    yield 2.6, ask("new", (1, 40))
    yield 3.0, ready("w2")
    yield 3.5, ready("w0", epoch=2)
    yield 4.0, ask("repeat", (1, 40))
    yield 5.0, ready("w2", epoch=2)
    yield 9.0, WorkerLost(WorkerId("w0"))
    yield 9.0, WorkerLost(WorkerId("w2"))
    yield 9.0, ask("runs", (1, 40), (9, 5), continued=True)
    yield 14.0, Tick()


def refusals() -> Script:
    yield 0.0, ask("too-early", (1, 10))
    yield 0.0, ready("w0", kv_tokens=100)
    yield 1.0, ask("too-long", (1, 90))
    for number in range(5):
        yield 1.0, ask(f"burst-{number}", (number + 1, 20))
    yield 2.0, RequestCancelled(RequestId("burst-0"))
    yield 2.0, RequestCancelled(RequestId("burst-0"))
    yield 1.5, ask("after-cancel", (1, 20))
    yield 3.0, RequestLost(RequestId("burst-1"))
    yield 3.0, RequestFinished(RequestId("burst-2"), 0, failed=True)
    yield 4.0, WorkerDraining(WorkerId("w0"))
    yield 4.0, ask("nobody", (1, 20))
    yield 5.0, DrainStarted()
    yield 5.0, ask("late", (1, 20))


def unreachable_worker() -> Script:
    yield 0.0, ready("w0")
    yield 0.0, ready("w1")
    yield 1.0, ask("a", (1, 40))
    yield 1.0, SendFailed(RequestId("a"), WorkerId("w0"))
    yield 1.0, SendFailed(RequestId("a"), WorkerId("w1"))
    yield 2.0, WorkerLoad(WorkerId("w0"), 3, 2, 90)
    yield 2.0, ask("b", (1, 40))


def done(*names: str, at: float, output_tokens: int = 12) -> Script:
    for name in names:
        yield at, FirstToken(RequestId(name), 0)
        yield at, RequestFinished(RequestId(name), output_tokens)


def rebalance() -> Script:
    """A prefix on a worker with a queue, asked for when another worker has none."""
    yield 0.0, ready("w0", kv_tokens=4000)
    yield 0.0, ask("first", (1, 160))
    yield from done("first", at=0.5)
    for number in range(4):
        yield 1.0, ask(f"queue-{number}", (number + 10, 290))
    yield 1.0, ready("w1", kv_tokens=4000)
    for number in range(6):
        yield 1.0, ask(f"shared-{number}", (1, 160), (number + 20, 60))


def replicate() -> Script:
    """A burst of one prefix, long enough to be worth a copy."""
    for name in ("w0", "w1", "w2"):
        yield 0.0, ready(name, kv_tokens=4000)
    for number in range(20):
        yield 1.0, ask(f"burst-{number}", (1, 240), (number + 10, 40))


def steer() -> Script:
    """A long prompt, when one worker decodes a lot and another has a short queue."""
    yield 0.0, ready("w0", kv_tokens=4000)
    for number in range(6):
        yield 0.0, ask(f"decodes-{number}", (number + 10, 20))
        yield 0.5, FirstToken(RequestId(f"decodes-{number}"), 0)
    yield 1.0, ready("w1", kv_tokens=4000)
    yield 1.0, ask("queue", (1, 40))
    yield 1.0, ask("long", (2, 290))


def paper_rebalance() -> Script:
    """One prefix, asked for until its worker has too much of the window's load."""
    yield 0.0, ready("w0", kv_tokens=4000)
    yield 0.0, ready("w1", kv_tokens=4000)
    for number in range(12):
        yield float(number), ask(f"shared-{number}", (1, 150), (number + 10, 100))
        yield from done(f"shared-{number}", at=number + 0.5)


def paper_replicate() -> Script:
    """A prefix whose queueing time doubles within the window, and which cools afterwards."""
    yield 0.0, ready("w0", kv_tokens=4000)
    yield 0.0, ready("w1", kv_tokens=4000)
    yield 0.0, ask("first", (1, 160))
    yield 0.0, ask("elsewhere", (2, 280))
    yield from done("first", "elsewhere", at=0.3)
    for number, (now, first_token) in enumerate([(1.0, 1.2), (35.0, 36.0), (38.0, 39.5), (40.0, 41.0), (42.0, 42.2)]):
        yield now, ask(f"shared-{number}", (1, 160), (number + 10, 8))
        yield from done(f"shared-{number}", at=first_token)
    yield 43.0, ask("busy", (1, 160), (30, 20))
    yield 105.0, ask("cooled", (1, 160), (31, 8))
    yield 105.0, ask("home", (1, 160), (32, 8))


def paper_steer() -> Script:
    """Exploring, when most of one worker's load is decode."""
    yield 0.0, ready("w0", kv_tokens=4000)
    yield 0.0, ready("w1", kv_tokens=4000)
    yield 0.0, ask("short-answer", (1, 60))
    yield 0.0, ask("long-answer", (2, 40))
    yield from done("short-answer", at=1.0, output_tokens=2)
    yield from done("long-answer", at=2.0, output_tokens=300)
    yield 3.0, ask("prefill", (3, 100))
    yield 3.0, ask("balanced", (4, 100))


SCRIPTS: dict[str, Callable[[], Script]] = {
    **{f"explore_then_exploit.{name}": explore_then_exploit for name in POLICIES},
    "rebalance.e2": rebalance,
    "rebalance.e2-paper": paper_rebalance,
    "replicate.e2": replicate,
    "replicate.e2-paper": paper_replicate,
    "steer.e2": steer,
    "steer.e2-paper": paper_steer,
    "eviction.e2": eviction,
    "eviction.e2-paper": eviction,
    "worker_lost_and_joined.e2": worker_lost_and_joined,
    "worker_lost_and_joined.e2-paper": worker_lost_and_joined,
    "refusals.e2": refusals,
    "unreachable_worker.e2": unreachable_worker,
}


def main() -> None:
    """Record all."""
    FOLDER.mkdir(exist_ok=True)
    for name, script in SCRIPTS.items():
        steps = record(scheduler_for(name), script())
        (FOLDER / f"{name}.jsonl").write_bytes(b"".join(encode_step(step) + b"\n" for step in steps))
    sys.stdout.write(f"{len(SCRIPTS)} traces in {FOLDER}\n")


if __name__ == "__main__":
    main()
