"""The fabric greets workers, and refuses those that do not fit. Over real sockets, against scripted workers."""

from __future__ import annotations

import msgspec
import pytest
from fabric_stage import EPOCH, W0, Stage, submit
from scripted_worker import capacity

from prebled.messages import PROTOCOL_VERSION, Abort, Beat, Introduce, Ready, Refused, Welcome

pytest_plugins = ("fabric_fixtures",)


async def test_a_worker_is_greeted_and_becomes_ready(stage: Stage) -> None:
    worker = stage.worker()
    await worker.hello()
    assert (await worker.hear(Welcome)).daemon_epoch == EPOCH
    await worker.beat(phase="loading", detail="weights")
    await worker.beat(phase="loading", detail="weights")
    await worker.beat(phase="loading", detail="graphs")
    await stage.recorder.wait("loading", 2)
    assert not stage.fabric.submit_nowait(W0, submit("early"))
    await worker.say(Ready(worker.epoch, capacity(), 1))
    await stage.recorder.wait("ready")
    assert stage.recorder.told == [
        ("known", "w0", 1, 100, "script"),
        ("loading", "w0", "weights"),
        ("loading", "w0", "graphs"),
        ("ready", "w0", 1, capacity()),
    ]
    await worker.beat(queued=2, running=3)
    assert (await stage.recorder.wait("beat"))[2] == Beat(worker.epoch, "ready", 0, 2, 3)


async def test_the_subscription_is_seen_before_anything_is_published(stage: Stage) -> None:
    worker = stage.worker()
    await worker.join()
    assert worker.topic == EPOCH


async def test_another_protocol_version_is_refused_with_both_named(stage: Stage) -> None:
    worker = stage.worker()
    await worker.hello(protocol=PROTOCOL_VERSION + 41)
    reason = (await worker.hear(Refused)).reason
    assert f"version {PROTOCOL_VERSION + 41} " in reason
    assert f"version {PROTOCOL_VERSION}" in reason
    assert stage.recorder.told == []


async def test_another_version_is_refused_even_if_its_hello_has_another_shape(stage: Stage) -> None:
    worker = stage.worker()
    await worker.say_raw(msgspec.msgpack.encode(["Hello", 99, {"id": "w0"}]))
    assert "version 99 " in (await worker.hear(Refused)).reason


async def test_another_block_size_is_refused_with_both_named(stage: Stage) -> None:
    worker = stage.worker()
    await worker.hello()
    await worker.hear(Welcome)
    await worker.say(Ready(worker.epoch, capacity(block_tokens=16), 1))
    reason = (await worker.hear(Refused)).reason
    assert "16" in reason
    assert "64" in reason
    assert "refused" in (await stage.recorder.wait("lost"))[2]
    assert stage.recorder.all("ready") == []


@pytest.mark.parametrize("worker_id", ["", "../w0", "w 0", "w" * 65])
async def test_a_malformed_worker_id_is_refused(stage: Stage, worker_id: str) -> None:
    worker = stage.worker(worker_id, identity=b"x")
    await worker.hello()
    assert repr(worker_id) in (await worker.hear(Refused)).reason


async def test_a_newer_start_replaces_the_old_one_and_the_old_is_sent_away(stage: Stage) -> None:
    old = await stage.ready_worker(epoch=1)
    await stage.start_runs(old, "r1")
    new = await stage.ready_worker(epoch=2)
    assert [told[:3] for told in stage.recorder.all("known", "lost")] == [
        ("known", "w0", 1),
        ("lost", "w0", "a newer start replaces it"),
        ("known", "w0", 2),
    ]
    await old.tokens("r1", 1)
    await old.beat()
    await old.hear(Introduce)
    await old.hello()
    assert "newer start" in (await old.hear(Refused)).reason
    await stage.start_runs(new, "r2")
    await new.tokens("r2", 7)
    await stage.recorder.wait("chunk")
    assert stage.recorder.tokens("r1") == []
    assert stage.count("stale_frames") == 1


async def test_two_workers_cannot_share_an_epoch(stage: Stage) -> None:
    await stage.ready_worker("w0", epoch=5)
    twin = stage.worker("w1", epoch=5)
    await twin.hello()
    assert "'w0'" in (await twin.hear(Refused)).reason


async def test_who_is_unknown_is_asked_to_introduce_itself_but_not_at_every_word(stage: Stage) -> None:
    worker = stage.worker()
    for _ in range(20):
        await worker.beat()
    await worker.hear(Introduce)
    await worker.hello()
    await stage.recorder.wait("known")  # so all that was said before it has been heard
    assert (stage.count("stale_messages"), stage.count("introduces")) == (20, 1)


async def test_a_second_hello_before_ready_is_only_welcomed_again(stage: Stage) -> None:
    worker = stage.worker()
    await worker.hello()
    await worker.hello()
    await worker.hear(Welcome)
    await worker.hear(Welcome)
    assert [told[0] for told in stage.recorder.told] == ["known"]


async def test_a_worker_that_comes_back_under_another_identity_is_the_same(stage: Stage) -> None:
    await stage.worker(identity=b"first").hello()
    await stage.recorder.wait("known")
    again = stage.worker(identity=b"second")
    await again.join()
    await stage.recorder.wait("ready")
    await stage.start_runs(again, "r1")
    assert [told[0] for told in stage.recorder.all("known", "ready", "lost")] == ["known", "ready"]


async def test_a_ready_worker_that_greets_again_lost_its_runs_and_aborts_them(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1", "r2")
    await worker.hello()
    await worker.hear(Welcome)
    assert (await worker.hear(Abort)).run_ids == ("r1", "r2")
    assert [told[0] for told in stage.recorder.all("known", "ready", "lost")] == ["known", "ready", "lost", "known"]


async def test_a_listener_may_refuse_a_worker(stage: Stage) -> None:
    worker = await stage.ready_worker()
    assert stage.fabric.refuse_worker(W0, "another model")
    assert (await worker.hear(Refused)).reason == "another model"
    assert not stage.fabric.submit_nowait(W0, submit("r1"))
    assert (await stage.recorder.wait("lost"))[2] == "refused: another model"
