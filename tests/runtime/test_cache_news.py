"""What workers tell of their caches, on its way to the scheduler; and the scheduler's wish for a snapshot, back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from naive_cache import removed, stored

from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RunId, WorkerId
from prebled.daemon.runtime import Runtime
from prebled.daemon.switchboard import Switchboard
from prebled.daemon.tokenizing import Tokenizing
from prebled.messages import Capacity, Submit
from prebled.model_files import load_model_files
from prebled.settings import CoreSettings, LimitSettings

W0 = WorkerId("w0")
CAPACITY = Capacity("m", "sim", "sim", 64, 10_000, 900, 1000, 2048, 8)


class Asked:
    """Stands for the fabric: remembers whose snapshots are wanted."""

    def __init__(self) -> None:
        self.snapshots: list[WorkerId] = []

    def submit_nowait(self, worker_id: WorkerId, submit: Submit) -> bool:
        raise AssertionError

    def abort_nowait(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        raise AssertionError

    def ask_snapshot(self, worker_id: WorkerId) -> None:
        self.snapshots.append(worker_id)


@pytest.fixture
def scheduler() -> GlobalScheduler:
    core = CoreSettings()
    return GlobalScheduler(make_policy("e2", core), core, block_tokens=64, max_waiting=10, retry_after_s=1.0)


async def test_news_reach_the_scheduler_and_a_gap_in_them_wants_a_snapshot(
    scheduler: GlobalScheduler, tiny_model: Path
) -> None:
    tokenizing = Tokenizing.load(load_model_files(str(tiny_model)))
    runtime = Runtime(
        scheduler, tokenizing, served_model_name="m", policy="e2", limits=LimitSettings(), daemon_epoch=bytes(8)
    )
    asked = Asked()
    runtime.attach(asked)
    board = Switchboard(runtime, "m", lambda line: None, lambda worker_id: None)
    board.worker_known(W0, Epoch(1), 1, "sim")
    board.worker_ready(W0, Epoch(1), CAPACITY)
    board.kv_snapshot(W0, [stored(1, 2, 3)])
    board.kv_changed(W0, [removed(3), stored(4, 5, parent=2)])
    (worker,) = scheduler.statistics().workers
    assert worker.held_tokens == 4 * 64
    assert asked.snapshots == []
    board.kv_changed(W0, [stored(9, parent=8)])
    assert asked.snapshots == [W0]
    board.kv_snapshot(W0, [stored(7, 8, 9)])
    (worker,) = scheduler.statistics().workers
    assert worker.held_tokens == 3 * 64
