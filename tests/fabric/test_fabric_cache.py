"""What workers' caches hold, through the fabric. Over real sockets, against scripted workers."""

from __future__ import annotations

from fabric_stage import EPOCH, MODEL, W0, Stage
from naive_cache import removed, stored
from scripted_worker import capacity

from prebled.core.types import Epoch
from prebled.messages import Abort, GetSnapshot, KvChanged, KvCleared, Ready, Replay, Welcome, encode

pytest_plugins = ("fabric_fixtures",)


async def test_a_worker_learns_the_model_and_tells_its_cache_before_it_serves(stage: Stage) -> None:
    worker = stage.worker()
    worker.held = (stored(1, 2), stored(3, parent=1))
    await worker.hello()
    assert await worker.hear(Welcome) == Welcome(EPOCH, MODEL)
    await worker.snapshot()
    await worker.say(Ready(worker.epoch, capacity(), 1))
    await stage.recorder.wait("kv_snapshot")
    assert [told[0] for told in stage.recorder.told] == ["known", "ready", "kv_snapshot"]
    assert stage.recorder.told[-1][2] == worker.held


async def test_what_a_run_stored_is_told_before_its_end(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    await worker.tokens("r1", 1)
    await worker.kv(stored(1, 2), drop=True)
    await worker.done("r1")
    await worker.answer(await worker.hear(Replay))
    await stage.recorder.wait("done")
    assert [told[0] for told in stage.recorder.all("chunk", "kv_changed", "done")] == ["chunk", "kv_changed", "done"]
    assert stage.recorder.all("kv_changed") == [("kv_changed", "w0", (stored(1, 2),))]


async def test_a_hole_is_mended_by_a_snapshot(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    await worker.kv(stored(1), drop=True)
    await worker.kv(stored(2, parent=1))
    ask = await worker.hear(Replay)
    worker.ring.clear()
    await worker.answer(ask)
    await worker.hear(Abort)
    await worker.hear(GetSnapshot)
    worker.held = (stored(1, 2),)
    await worker.snapshot()
    await worker.kv(removed(2))
    await stage.recorder.wait("kv_changed", 2)
    told = [told[2] for told in stage.recorder.all("kv_changed", "kv_snapshot")]
    assert told == [(), (stored(2, parent=1),), (stored(1, 2),), (removed(2),)]
    assert (stage.count("holes"), stage.count("snapshots"), stage.count("snapshots_asked")) == (1, 2, 1)


async def test_a_snapshot_can_be_asked_for(stage: Stage) -> None:
    worker = await stage.ready_worker()
    stage.fabric.ask_snapshot(W0)
    stage.fabric.ask_snapshot(W0)
    await worker.hear(GetSnapshot)
    worker.held = (stored(5),)
    await worker.snapshot()
    assert (await stage.recorder.wait("kv_snapshot", 2))[2] == (stored(5),)
    stage.fabric.forget_worker(W0, "killed")
    stage.fabric.ask_snapshot(W0)


async def test_a_worker_that_does_not_tell_its_cache_is_asked(stage: Stage) -> None:
    worker = stage.worker()
    await worker.hello()
    await worker.hear(Welcome)
    await worker.say(Ready(worker.epoch, capacity(), 1))
    await worker.hear(GetSnapshot)
    await worker.snapshot()
    await stage.recorder.wait("kv_snapshot")


async def test_a_worker_that_comes_back_tells_its_cache_anew(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await worker.kv(stored(1))
    await stage.recorder.wait("kv_changed")
    worker.held = (stored(1), stored(2))
    await worker.join()
    assert (await stage.recorder.wait("kv_snapshot", 2))[2] == worker.held


async def test_changes_of_another_life_and_broken_ones_are_counted(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await worker.publish_raw(EPOCH, encode(KvChanged(Epoch(999), 1, (KvCleared(),))))
    await worker.publish_raw(EPOCH, encode(KvChanged(worker.epoch, 1, (KvCleared(),)))[:-1])
    await worker.kv(stored(1))
    await stage.recorder.wait("kv_changed")
    assert stage.recorder.all("kv_changed") == [("kv_changed", "w0", (stored(1),))]
    assert (stage.count("stale_frames"), stage.count("bad_frames"), stage.count("kv_frames")) == (1, 1, 1)
