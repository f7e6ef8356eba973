"""What the fabric sends: batches and control messages, in order. Over real sockets, against scripted workers."""

from __future__ import annotations

import asyncio
import time

from fabric_stage import QUICK, W0, Stage, submit

from prebled.core.types import RunId
from prebled.messages import Abort, Batch, Drain, Stop

pytest_plugins = ("fabric_fixtures",)


async def test_runs_of_one_turn_travel_in_one_batch(stage: Stage) -> None:
    worker = await stage.ready_worker()
    for n in range(5):
        stage.fabric.submit_nowait(W0, submit(f"r{n}"))
    assert [s.run_id for s in (await worker.hear(Batch)).submits] == ["r0", "r1", "r2", "r3", "r4"]
    assert (stage.count("batches"), stage.count("submits")) == (1, 5)


async def test_a_batch_is_sent_when_it_is_full(stage: Stage) -> None:
    worker = await stage.ready_worker()
    for n in range(QUICK.batch_count + 1):
        stage.fabric.submit_nowait(W0, submit(f"r{n}"))
    assert len((await worker.hear(Batch)).submits) == QUICK.batch_count
    assert len((await worker.hear(Batch)).submits) == 1


async def test_a_batch_is_sent_when_it_is_old_even_within_a_turn(stage: Stage) -> None:
    worker = await stage.ready_worker()
    end = asyncio.get_running_loop().time() + 2 * QUICK.batch_s
    stage.fabric.submit_nowait(W0, submit("r0"))
    while asyncio.get_running_loop().time() < end:
        pass  # a long turn: nothing else gets to run
    stage.fabric.submit_nowait(W0, submit("r1"))
    stage.fabric.submit_nowait(W0, submit("r2"))
    assert len((await worker.hear(Batch)).submits) == 2
    assert len((await worker.hear(Batch)).submits) == 1


async def test_control_keeps_its_order_behind_a_batch(stage: Stage) -> None:
    worker = await stage.ready_worker()
    stage.fabric.submit_nowait(W0, submit("r1"))
    stage.fabric.abort_nowait(W0, [RunId("r1")])
    stage.fabric.drain_worker(W0)
    stage.fabric.stop_worker(W0)
    assert len((await worker.hear(Batch, skip=())).submits) == 1
    assert (await worker.hear(Abort)).run_ids == ("r1",)
    await worker.hear(Drain)
    await worker.hear(Stop)


async def test_sending_does_not_hide_what_arrived_meanwhile(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await worker.beat(queued=7)
    time.sleep(0.05)  # noqa: ASYNC251 - it arrives while the loop is busy, and the sending below takes its edge
    stage.fabric.drain_worker(W0)
    assert (await stage.recorder.wait("beat"))[2].queued == 7
