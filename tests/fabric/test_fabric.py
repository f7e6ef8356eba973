"""The daemon's fabric over real sockets, against scripted workers, some of which misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from scripted_worker import Recorder, ScriptedWorker, capacity

from prebled.core.types import Epoch, RunId, WorkerId
from prebled.daemon.fabric import Fabric
from prebled.daemon.fabric_sockets import RECEIVE_MESSAGES, SEND_MESSAGES
from prebled.errors import SettingsError
from prebled.messages import (
    PROTOCOL_VERSION,
    Abort,
    Batch,
    Beat,
    Chunk,
    Drain,
    Introduce,
    Leaving,
    Pulse,
    Ready,
    Refused,
    Replay,
    Sampling,
    Stop,
    Submit,
    Tokens,
    Welcome,
    encode,
)
from prebled.settings import FabricSettings

EPOCH = b"\x01daemon\x02"
W0 = WorkerId("w0")
QUICK = FabricSettings(beat_s=0.1, lost_after_s=0.6, replay_after_s=0.05, batch_s=0.1)


def submit(run_id: str) -> Submit:
    return Submit(RunId(run_id), b"\x01\0\0\0", Sampling(max_tokens=5))


class Stage:
    """A fabric that runs, its listener, and workers that are closed in the end."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/f.sock"
        self.recorder = Recorder()
        self.fabric = Fabric(self.address, EPOCH, self.recorder, QUICK, block_tokens=64)
        self.workers: list[ScriptedWorker] = []

    def worker(self, worker_id: str = "w0", epoch: int = 1, identity: bytes | None = None) -> ScriptedWorker:
        self.workers.append(ScriptedWorker(self.address, worker_id, epoch, identity))
        return self.workers[-1]

    async def ready_worker(self, worker_id: str = "w0", epoch: int = 1) -> ScriptedWorker:
        worker = self.worker(worker_id, epoch)
        count = len(self.recorder.all("ready"))
        await worker.join()
        await self.recorder.wait("ready", count + 1)
        return worker

    async def start_runs(self, worker: ScriptedWorker, *run_ids: str) -> None:
        for run_id in run_ids:
            assert self.fabric.submit_nowait(worker.worker_id, submit(run_id))
        assert await worker.hear_runs(len(run_ids)) == list(run_ids)

    def count(self, name: str) -> int:
        return int(getattr(self.fabric.statistics(), name))


@contextlib.asynccontextmanager
async def open_stage(folder: Path) -> AsyncIterator[Stage]:
    stage = Stage(folder)
    stage.fabric.start()
    running = asyncio.ensure_future(stage.fabric.run())
    try:
        yield stage
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        for worker in stage.workers:
            worker.close()
        stage.fabric.close()


@pytest.fixture
async def stage(short_dir: Path) -> AsyncIterator[Stage]:
    async with open_stage(short_dir) as stage:
        yield stage


# --- greeting -----------------------------------------------------------------------------------------------------


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
    assert [told[0] for told in stage.recorder.told] == ["known", "ready"]


async def test_a_ready_worker_that_greets_again_lost_its_runs_and_aborts_them(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.start_runs(worker, "r1", "r2")
    await worker.hello()
    await worker.hear(Welcome)
    assert (await worker.hear(Abort)).run_ids == ("r1", "r2")
    assert [told[0] for told in stage.recorder.told] == ["known", "ready", "lost", "known"]


async def test_a_listener_may_refuse_a_worker(stage: Stage) -> None:
    worker = await stage.ready_worker()
    assert stage.fabric.refuse_worker(W0, "another model")
    assert (await worker.hear(Refused)).reason == "another model"
    assert not stage.fabric.submit_nowait(W0, submit("r1"))
    assert (await stage.recorder.wait("lost"))[2] == "refused: another model"


# --- runs ---------------------------------------------------------------------------------------------------------


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


# --- parting ------------------------------------------------------------------------------------------------------


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


# --- addresses and loops ------------------------------------------------------------------------------------------


async def test_an_address_in_use_is_a_settings_error_that_names_it(unused_tcp_port: int) -> None:
    address = f"tcp:127.0.0.1:{unused_tcp_port}"
    first = Fabric(address, EPOCH, Recorder(), QUICK, block_tokens=64)
    first.start()
    second = Fabric(address, EPOCH, Recorder(), QUICK, block_tokens=64)
    with pytest.raises(SettingsError, match=str(unused_tcp_port)):
        second.start()
    first.close()
    second.close()


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_it_works_over_tcp(host: str, unused_tcp_port_factory: Callable[[], int]) -> None:
    if host == "[::1]" and not has_ipv6_loopback():
        pytest.skip("no IPv6 here")
    recorder = Recorder()
    for _ in range(10):  # two ports in a row are wanted, and only one of them is known to be free
        address = f"tcp:{host}:{unused_tcp_port_factory()}"
        fabric = Fabric(address, EPOCH, recorder, QUICK, block_tokens=64)
        with contextlib.suppress(SettingsError):
            fabric.start()
            break
    worker = ScriptedWorker(address)
    await worker.join()
    await recorder.wait("ready")
    worker.close()
    fabric.close()


def test_a_daemon_epoch_has_eight_bytes() -> None:
    with pytest.raises(SettingsError, match="abc"):
        Fabric("unix:/tmp/x", b"abc", None, QUICK, block_tokens=64)  # type: ignore[arg-type]


def test_it_works_on_uvloop_and_keeps_up_with_a_burst(short_dir: Path) -> None:
    frames, chunks = 300, 64
    runs = [f"r{n}" for n in range(chunks)]

    async def main() -> None:
        async with open_stage(short_dir) as stage:
            worker = await stage.ready_worker()
            await stage.start_runs(worker, *runs)
            for seq in range(1, frames + 1):
                step = Tokens(worker.epoch, seq, tuple(Chunk(RunId(run), (seq,)) for run in runs))
                await worker.publish_raw(worker.topic, encode(step))
            worker.seq = frames
            for run in runs:
                await worker.done(run)
            await stage.recorder.wait("done", chunks)
            for run in runs:
                assert stage.recorder.tokens(run) == list(range(1, frames + 1))

    uvloop.run(main())


async def test_a_next_daemon_takes_over_the_socket_files_that_the_last_one_left(short_dir: Path) -> None:
    (short_dir / "f.sock").touch()
    for _ in range(2):
        async with open_stage(short_dir) as stage:
            await stage.ready_worker()
            assert (short_dir / "f.sock").is_socket()
