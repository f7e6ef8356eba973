"""How the fabric loses workers, each exactly once. Over real sockets, against scripted workers."""

from __future__ import annotations

import asyncio

import msgspec
from fabric_stage import QUICK, W0, Stage, submit

from prebled.core.types import Epoch, RunId
from prebled.messages import Abort, Introduce, Leaving, Pulse

pytest_plugins = ("fabric_fixtures",)


async def test_pulses_come_once_a_beat(stage: Stage) -> None:
    worker = await stage.ready_worker()
    for _ in range(3):
        await worker.hear(Pulse)


async def test_a_silent_worker_is_lost_and_may_come_back(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    assert (await stage.recorder.wait("lost"))[2].startswith("silent for 0.")
    await worker.beat(running=1)
    await worker.hear(Introduce)
    await worker.join()
    await stage.recorder.wait("ready", 2)
    assert (await worker.hear(Abort)).run_ids == ("r1",)
    await stage.start_runs(worker, "r2")


async def test_a_vanished_worker_is_lost_at_the_next_pulse(stage: Stage) -> None:
    worker = await stage.ready_worker()
    worker.close()
    assert (await stage.recorder.wait("lost"))[2] == "its connection is gone"
    assert stage.count("unreachable") >= 1


async def test_a_worker_that_leaves_is_lost_once(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await worker.say(Leaving(worker.epoch, "asked to"))
    assert (await stage.recorder.wait("lost"))[2] == "it leaves: asked to"
    stage.fabric.forget_worker(W0, "exit code 0")
    assert not stage.fabric.stop_worker(W0)
    await asyncio.sleep(0)
    assert len(stage.recorder.all("lost")) == 1


async def test_a_forgotten_worker_is_lost_exactly_once_and_not_from_within_the_call(stage: Stage) -> None:
    await stage.ready_worker()
    stage.fabric.forget_worker(W0, "killed")
    stage.fabric.forget_worker(W0, "killed again")
    assert stage.recorder.all("lost") == []
    assert not stage.fabric.submit_nowait(W0, submit("r1"))
    await stage.recorder.wait("lost")
    await asyncio.sleep(0)
    assert stage.recorder.all("lost") == [("lost", "w0", "killed")]


async def test_a_worker_that_does_not_read_is_lost_when_its_queue_is_full(stage: Stage) -> None:
    await stage.ready_worker()
    big = msgspec.structs.replace(submit("r"), tokens=bytes(64 * 1024))
    sent = 0
    while not stage.recorder.all("lost"):
        if stage.fabric.submit_nowait(W0, msgspec.structs.replace(big, run_id=RunId(f"r{sent}"))):
            sent += 1
            stage.fabric.abort_nowait(W0, [])  # sends the batch: one message per run
        else:
            await stage.recorder.wait("lost")
    assert "messages wait for it already" in stage.recorder.all("lost")[0][2]
    assert stage.count("unreachable") == 1


async def test_messages_of_another_epoch_are_ignored(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await worker.say(Leaving(Epoch(999), "not me"))
    await worker.beat(queued=4)
    await stage.recorder.wait("beat")
    assert stage.recorder.all("lost") == []
    assert stage.count("stale_messages") == 1


async def test_our_own_standstill_is_no_workers_silence(stage: Stage) -> None:
    worker = await stage.ready_worker()
    end = asyncio.get_running_loop().time() + 2 * QUICK.lost_after_s
    while asyncio.get_running_loop().time() < end:
        pass
    await asyncio.sleep(2 * QUICK.replay_after_s)  # time is kept again before anything is heard
    await worker.beat()
    await stage.recorder.wait("beat")
    assert stage.recorder.all("lost") == []
