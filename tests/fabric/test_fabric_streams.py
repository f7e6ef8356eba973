"""Workers' streams through the fabric: tokens, ends and what is lost on the way. Over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from fabric_stage import EPOCH, QUICK, Stage

from prebled.core.types import RunId
from prebled.daemon.fabric_sockets import RECEIVE_MESSAGES, SEND_MESSAGES
from prebled.messages import Abort, Chunk, GetSnapshot, Introduce, Leaving, Pulse, Replay, Tokens, encode

pytest_plugins = ("fabric_fixtures",)


async def test_tokens_and_ends_arrive_in_order(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1", "r2")
    await worker.tokens("r1", 1, 2)
    await worker.tokens("r2", 9)
    await worker.tokens("r1", 3)
    await worker.done("r1")
    await worker.failed("r2")
    await stage.recorder.wait("done")
    await stage.recorder.wait("failed")
    assert stage.recorder.tokens("r1") == [1, 2, 3]
    assert stage.recorder.tokens("r2") in ([9], [])
    ends = [told[0] for told in stage.recorder.told if told[2] == "r1"]
    assert ends == ["chunk", "chunk", "done"]
    assert stage.count("live_runs") == 0


async def test_dropped_frames_are_asked_for_again(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    await worker.tokens("r1", 1)
    await worker.tokens("r1", 2, drop=True)
    await worker.tokens("r1", 3, drop=True)
    await worker.tokens("r1", 4)
    await worker.tokens("r1", 5, drop=True)
    await worker.done("r1")
    ask = await worker.hear(Replay)
    assert ask == Replay(2, 3)
    await worker.answer(ask)
    ask = await worker.hear(Replay)
    assert ask == Replay(5, 5)
    await worker.answer(ask)
    await stage.recorder.wait("done")
    assert stage.recorder.tokens("r1") == [1, 2, 3, 4, 5]


async def test_what_zeromq_drops_when_its_queues_are_full_is_restored(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    frames = RECEIVE_MESSAGES + SEND_MESSAGES + 5000  # and what the kernel's buffers take
    for number in range(frames):
        await worker.tokens("r1", number)  # never waits, so nobody reads
    await worker.done("r1")
    while not stage.recorder.all("done"):
        with contextlib.suppress(TimeoutError):
            await worker.answer(await worker.hear(Replay, patience_s=0.2))
    assert stage.count("gaps") > 0
    assert stage.recorder.tokens("r1") == list(range(frames))


async def test_a_beat_reveals_a_dropped_last_frame(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    await worker.tokens("r1", 1, drop=True)
    await worker.beat(running=1)
    await worker.answer(await worker.hear(Replay))
    await stage.recorder.wait("chunk")
    assert stage.recorder.tokens("r1") == [1]


async def test_a_hole_in_the_ring_loses_the_runs_and_aborts_them(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1", "r2")
    await worker.tokens("r1", 1)
    await worker.tokens("r1", 2, drop=True)
    await worker.tokens("r1", 3)
    ask = await worker.hear(Replay)
    del worker.ring[2]
    await worker.answer(ask)
    assert await stage.recorder.wait("run_lost") == ("run_lost", "w0", ("r1", "r2"))
    assert (await worker.hear(Abort)).run_ids == ("r1", "r2")
    await worker.hear(GetSnapshot)
    await stage.start_runs(worker, "r3")
    await worker.tokens("r1", 4)
    await worker.tokens("r3", 5)
    await stage.recorder.wait("chunk", 2)
    assert [told[2:] for told in stage.recorder.all("chunk")] == [("r1", (1,)), ("r3", (5,))]
    assert (stage.count("holes"), stage.count("runs_lost")) == (1, 2)


async def test_a_worker_that_never_replays_is_greeted_anew(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    await worker.tokens("r1", 1, drop=True)
    lost = False
    while not lost:
        await worker.beat(running=1)
        await asyncio.sleep(0.05)
        lost = bool(stage.recorder.all("lost"))
    assert "never came" in stage.recorder.all("lost")[0][2]
    await worker.beat()
    await worker.hear(Introduce, skip=(Pulse, Replay))


async def test_garbage_costs_only_itself(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    await worker.say_raw(b"\xc1garbage")
    await worker.say_raw(b"", encode(Leaving(worker.epoch, "a part too many")))
    await worker.say_raw(msgspec.msgpack.encode(["Done", "no epoch"]))
    await worker.say_raw(encode(Leaving(worker.epoch, "x")).replace(b"x", b"\xff"))
    await worker.say_raw(b"\x91" * 100_000)
    await worker.publish_raw(EPOCH, b"\xff\xff")
    await worker.publish_raw(EPOCH, msgspec.msgpack.encode(["Tokens", worker.epoch, "one", []]))
    await worker.tokens("r1", 1)
    await worker.done("r1")
    await stage.recorder.wait("done")
    assert stage.recorder.tokens("r1") == [1]
    assert (stage.count("bad_messages"), stage.count("bad_frames"), stage.count("callback_errors")) == (5, 2, 0)
    assert stage.recorder.all("lost") == []


async def test_a_failing_listener_costs_only_what_it_was_told(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1", "r2")

    def fail_for_r1(told: tuple[Any, ...]) -> None:
        if told[:3] == ("chunk", "w0", "r1"):
            raise RuntimeError("a bug in the listener")

    stage.recorder.hook = fail_for_r1
    chunks = (Chunk(RunId("r1"), (1,)), Chunk(RunId("r2"), (2,)))
    worker.seq += 1
    await worker.publish_raw(EPOCH, encode(Tokens(worker.epoch, worker.seq, chunks)))
    await worker.done("r2")
    await stage.recorder.wait("done")
    assert stage.recorder.tokens("r2") == [2]
    assert stage.count("callback_errors") == 1


async def test_runs_that_the_worker_does_not_know_are_lost_after_a_while(stage: Stage) -> None:
    worker = await stage.ready_worker()
    for count, run_id in enumerate(["r1", "r2"]):
        await stage.start_runs(worker, run_id)
        while len(stage.recorder.all("run_lost")) == count:
            assert stage.recorder.all("lost") == []
            await worker.beat()
            await asyncio.sleep(0.05)
        assert (await worker.hear(Abort)).run_ids == (run_id,)
    assert stage.recorder.all("run_lost") == [("run_lost", "w0", ("r1",)), ("run_lost", "w0", ("r2",))]


async def test_a_busy_worker_keeps_its_runs(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1")
    end = asyncio.get_running_loop().time() + 2 * QUICK.lost_after_s
    while asyncio.get_running_loop().time() < end:
        await worker.beat(queued=1)
        await asyncio.sleep(0.05)
    assert stage.recorder.all("run_lost", "lost") == []
