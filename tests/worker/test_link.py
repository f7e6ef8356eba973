"""The worker's side of the fabric against a scripted daemon, over real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from scripted_daemon import ScriptedDaemon, ScriptedEngine
from sim_runs import EOS_TOKEN_IDS, VOCAB_SIZE, expected_tokens, prompt, submit

from prebled.core.types import Epoch, RunId, WorkerId
from prebled.errors import EngineFailed, SettingsError
from prebled.messages import (
    FRAME,
    PROTOCOL_VERSION,
    Abort,
    Batch,
    Beat,
    Chunk,
    Done,
    Drain,
    Failed,
    Hello,
    Introduce,
    Leaving,
    Message,
    Pulse,
    Ready,
    Refused,
    Replay,
    Replayed,
    Stop,
    Tokens,
    Welcome,
    encode,
)
from prebled.settings import FabricSettings, SimSettings
from prebled.worker import run_service
from prebled.worker.engine import Engine, EngineStep, RunDone, RunFailed
from prebled.worker.link import Ending, Link
from prebled.worker.sim_engine import SimEngine

QUICK = FabricSettings(beat_s=0.02)


def sim_engine(speed: float = 1e6) -> SimEngine:
    return SimEngine(SimSettings(speed=speed), 16, model="m", vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS)


def make_link(address: str, engine: Engine, settings: FabricSettings = QUICK) -> Link:
    return Link(
        engine,
        address=address,
        worker_id=WorkerId("w0"),
        epoch=Epoch(41),
        pid=1234,
        engine_name="sim",
        settings=settings,
    )


@asynccontextmanager
async def running(link: Link) -> AsyncIterator[asyncio.Task[Ending]]:
    """The link at work; told to stop at the end if it still is."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        yield task
        if not task.done():
            link.stop("the test is over")


@pytest.fixture
def address(short_dir: Path) -> str:
    return f"unix:{short_dir}/fabric.sock"


@pytest.fixture
async def make_daemon(address: str) -> AsyncIterator[Callable[..., ScriptedDaemon]]:
    made: list[ScriptedDaemon] = []

    def make(epoch: bytes = b"daemon-1", *, subscribe: bool = True) -> ScriptedDaemon:
        made.append(ScriptedDaemon(address, epoch, subscribe=subscribe))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
async def daemon(make_daemon: Callable[..., ScriptedDaemon]) -> ScriptedDaemon:
    return make_daemon()


async def collect(daemon: ScriptedDaemon, runs: int, first_seq: int = 1) -> tuple[dict[str, list[int]], list[bytes]]:
    """The tokens of so many runs to their ends, and the frames; numbers without holes and ends after their frames."""
    ends = await daemon.hear_ends(runs)
    frames: list[bytes] = []
    tokens: dict[str, list[int]] = {run_id: [] for run_id in ends}
    last_seen: dict[str, int] = {}
    for seq in range(first_seq, max(end.last_seq for end in ends.values() if isinstance(end, Done)) + 1):
        raw, frame = await daemon.next_frame()
        frames.append(raw)
        assert (frame.epoch, frame.seq) == (41, seq)
        for chunk in frame.chunks:
            tokens[chunk.run_id] += chunk.tokens
            last_seen[chunk.run_id] = seq
    assert all(end.last_seq >= last_seen[run_id] for run_id, end in ends.items() if isinstance(end, Done))
    return tokens, frames


# --- greeting ---


async def test_ready_waits_for_the_subscription(make_daemon: Callable[..., ScriptedDaemon], address: str) -> None:
    daemon = make_daemon(subscribe=False)
    async with running(make_link(address, sim_engine())):
        assert await daemon.hear(Hello) == Hello(PROTOCOL_VERSION, WorkerId("w0"), Epoch(41), 1234, "sim")
        await daemon.hear(Hello)  # again and again until it is welcomed
        await daemon.say(Welcome(daemon.epoch))
        for _ in range(5):
            assert (await daemon.hear(Beat, skip=(Hello,))).phase == "ready"  # the engine is loaded all the while
        daemon.bind_events()
        daemon.subscribe(b"daemon-0")  # of another life
        for _ in range(5):
            await daemon.hear(Beat, skip=())
        daemon.subscribe(daemon.epoch)
        ready = await daemon.hear(Ready)
        assert (ready.epoch, ready.next_seq) == (41, 1)
        assert (ready.capacity.engine, ready.capacity.device, ready.capacity.vocab_size) == ("sim", "sim", VOCAB_SIZE)


async def test_loading_is_told_and_ready_waits_for_it(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    async with running(make_link(address, engine)):
        await daemon.hear(Hello)
        await daemon.say(Welcome(daemon.epoch))
        assert (await daemon.hear(Beat, skip=(Hello,))).phase == "loading"
        engine.report("shard 3 of 8")
        await daemon.hear_beat(lambda beat: beat.detail == "shard 3 of 8")
        await daemon.say(Batch((submit("early", [1], 1),)))
        refused = await daemon.hear(Failed)
        assert (refused.run_id, refused.code, refused.retryable) == ("early", "no_worker_ready", True)
        engine.loaded.set()
        await daemon.hear(Ready)
        assert (await daemon.hear(Beat)).detail == ""


async def test_a_second_welcome_is_not_answered(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine())):
        await daemon.greet()
        await daemon.say(Welcome(daemon.epoch))
        for _ in range(5):
            await daemon.hear(Beat, skip=())


async def test_a_refused_worker_exits_and_names_the_reason(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine())) as link:
        await daemon.hear(Hello)
        await daemon.say(Refused("protocol 1 is spoken here, not 2"))
        ending = await link
    assert ending.code == 1
    assert "protocol 1 is spoken here, not 2" in ending.reason


async def test_a_bad_address_is_named(short_dir: Path) -> None:
    with pytest.raises(SettingsError, match="'unix:'"):
        await make_link("unix:", sim_engine()).run()


async def test_over_tcp() -> None:
    port = next(port for port in range(41_000, 60_000, 2) if _is_free(port) and _is_free(port + 1))
    daemon = ScriptedDaemon(f"tcp:127.0.0.1:{port}")
    async with running(make_link(f"tcp://localhost:{port}", sim_engine())):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 5),)))
        tokens, _ = await collect(daemon, 1)
    daemon.close()
    assert tokens == {"a": expected_tokens(prompt(1, 20), 5)}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# --- serving ---


async def test_runs_come_back_in_numbered_frames(daemon: ScriptedDaemon, address: str) -> None:
    prompts = {f"r{seed}": prompt(seed, 30 + seed) for seed in range(5)}
    async with running(make_link(address, sim_engine())):
        await daemon.greet()
        await daemon.say(Batch(tuple(submit(run_id, tokens, 20) for run_id, tokens in prompts.items())))
        tokens, frames = await collect(daemon, 5)
        assert tokens == {run_id: expected_tokens(asked, 20) for run_id, asked in prompts.items()}
        assert len(frames) == 20, "one frame per step of the engine, for all runs"
        beat = await daemon.hear_beat(lambda beat: beat.running == 0)
        assert (beat.last_seq, beat.kv_used_tokens, beat.phase) == (20, 0, "ready")


async def test_frames_and_ends_say_what_the_engine_said(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    a, b, c = RunId("a"), RunId("b"), RunId("c")
    async with running(make_link(address, engine)):
        await daemon.greet()
        await daemon.say(Batch(tuple(submit(run_id, [1, 2], 9) for run_id in (a, b, c))))
        await daemon.hear_beat(lambda beat: beat.running == 3)
        engine.steps.put_nowait(EngineStep((Chunk(a, (5, 6), 0), Chunk(b, (7,), 16), Chunk(RunId("stray"), (9,), 0))))
        engine.steps.put_nowait(EngineStep())
        engine.steps.put_nowait(
            EngineStep((Chunk(b, (8,)),), (RunDone(b, "stop", 2, 16, 2),), (RunFailed(c, "engine_failed", "no", True),))
        )
        engine.steps.put_nowait(EngineStep(done=(RunDone(a, "length", 2, 0, 2), RunDone(b, "stop", 2, 16, 2))))
        _, first = await daemon.next_frame()
        _, second = await daemon.next_frame()
        assert first == Tokens(Epoch(41), 1, (Chunk(a, (5, 6), 0), Chunk(b, (7,), 16)))
        assert second == Tokens(Epoch(41), 2, (Chunk(b, (8,)),))
        assert await daemon.hear(Done) == Done(Epoch(41), b, 2, "stop", 2, 16, 2)
        assert await daemon.hear(Failed) == Failed(Epoch(41), c, "engine_failed", "no", True)
        assert await daemon.hear(Done) == Done(Epoch(41), a, 2, "length", 2, 0, 2)
        for _ in range(3):
            await daemon.hear(Beat, skip=())  # the second end of b is not told


async def test_bad_runs_are_refused_alone(
    daemon: ScriptedDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_service, "MOST_RUNS", 2)
    too_long = submit("long", prompt(1, 33_000), 1)
    broken = msgspec.structs.replace(submit("broken", [1], 1), tokens=b"abc")
    good = [submit(run_id, prompt(2, 20), 3) for run_id in ("a", "b", "c")]
    async with running(make_link(address, sim_engine(speed=10))):
        await daemon.greet()
        await daemon.say(Batch((too_long, good[0], submit("alien", [VOCAB_SIZE], 1), good[0], broken, *good[1:])))
        ends = await daemon.hear_ends(6)
    codes = {run_id: (end.code, end.retryable) for run_id, end in ends.items() if isinstance(end, Failed)}
    assert codes == {
        "long": ("context_length_exceeded", False),
        "alien": ("invalid_value", False),
        "broken": ("invalid_value", False),
        "c": ("saturated", True),
    }
    assert {run_id for run_id, end in ends.items() if isinstance(end, Done)} == {"a", "b"}


async def test_what_does_not_decode_is_counted_and_harms_nothing(daemon: ScriptedDaemon, address: str) -> None:
    class Unheard(Message):
        number: int

    link = make_link(address, sim_engine())
    async with running(link):
        await daemon.greet()
        await daemon.say_raw(b"\xc1 not msgpack")
        await daemon.say_raw(encode(Unheard(1)))
        await daemon.say_raw(encode(Batch((submit("a", [1], 1),)))[:-3])
        await daemon.say_raw(encode(Pulse()), b"two parts")
        await daemon.say_raw(b"")
        await daemon.say(Batch((submit("b", [1], 2),)))
        assert set(await daemon.hear_ends(1)) == {"b"}
    assert link.bad_messages == 5


async def test_aborts_end_runs_and_unknown_ones_do_not_matter(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine(speed=20))):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 10_000), submit("b", prompt(2, 20), 10))))
        await daemon.next_frame()
        await daemon.say(Abort((RunId("a"), RunId("nobody"))))
        ends = await daemon.hear_ends(2)
        assert {run_id: end.reason for run_id, end in ends.items() if isinstance(end, Done)} == {
            "a": "abort",
            "b": "length",
        }


# --- replay ---


async def test_frames_are_replayed_as_they_were(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine())):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 9),)))
        _, frames = await collect(daemon, 1)
        await daemon.say(Replay(3, 5))
        assert await daemon.hear(Replayed) == Replayed(Epoch(41), 3, tuple(frames[2:5]))
        await daemon.say(Replay(8, 50))
        assert await daemon.hear(Replayed) == Replayed(Epoch(41), 8, tuple(frames[7:]))
        await daemon.say(Replay(30, 50))
        assert (await daemon.hear(Replayed)).frames == ()


async def test_what_the_ring_no_longer_has_is_not_in_the_answer(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine(), msgspec.structs.replace(QUICK, ring_frames=4))):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 9),)))
        _, frames = await collect(daemon, 1)
        await daemon.say(Replay(2, 8))
        assert await daemon.hear(Replayed) == Replayed(Epoch(41), 6, tuple(frames[5:8]))
        await daemon.say(Replay(1, 3))
        assert await daemon.hear(Replayed) == Replayed(Epoch(41), 6, ())


async def test_a_long_replay_comes_in_parts(
    daemon: ScriptedDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_service, "REPLAY_BYTES", 100)
    async with running(make_link(address, sim_engine())):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 30),)))
        _, frames = await collect(daemon, 1)
        got: list[bytes] = []
        while len(got) < 30:
            await daemon.say(Replay(len(got) + 1, 30))
            part = await daemon.hear(Replayed)
            assert part.first_seq == len(got) + 1
            assert 1 <= len(part.frames) < 10
            got += part.frames
        assert got == frames


async def frames_with_gaps(daemon: ScriptedDaemon, last_seq: int, rng: random.Random) -> AsyncIterator[Tokens]:
    """All frames in order, three in ten of them missed and asked for again."""
    for seq in range(1, last_seq + 1):
        _, frame = await daemon.next_frame()
        if rng.random() < 0.3:
            await daemon.say(Replay(seq, seq))
            replayed = await daemon.hear(Replayed)
            assert replayed.first_seq == seq
            (frame,) = [FRAME.decode(raw) for raw in replayed.frames]
        assert frame.seq == seq
        yield frame


async def test_random_runs_aborts_and_gaps(daemon: ScriptedDaemon, address: str) -> None:
    rng = random.Random(3)
    answers: dict[str, list[int]] = {}
    ends: dict[str, Done] = {}

    async def hear_ends_until(open_runs: int) -> None:
        while len(answers) - len(ends) > open_runs:
            done = await daemon.hear(Done)
            assert done.run_id not in ends, "ended twice"
            ends[done.run_id] = done

    async with running(make_link(address, sim_engine(speed=300))):
        await daemon.greet()
        while len(answers) < 80:
            batch = []
            for _ in range(rng.randint(1, 4)):
                asked = prompt(rng.randrange(5), rng.randint(1, 200))
                batch.append(submit(f"r{len(answers)}", asked, rng.randint(1, 40)))
                answers[f"r{len(answers)}"] = expected_tokens(asked, batch[-1].sampling.max_tokens)
            await daemon.say(Batch(tuple(batch)))
            if rng.random() < 0.3:
                await daemon.say(Abort((RunId(rng.choice(list(answers))),)))
            await hear_ends_until(open_runs=rng.randint(0, 8))
        await hear_ends_until(open_runs=0)
        tokens: dict[str, list[int]] = {run_id: [] for run_id in answers}
        async for frame in frames_with_gaps(daemon, max(end.last_seq for end in ends.values()), rng):
            for chunk in frame.chunks:
                assert frame.seq <= ends[chunk.run_id].last_seq
                tokens[chunk.run_id] += chunk.tokens
    for run_id, end in ends.items():
        assert tokens[run_id] == answers[run_id][: end.output_tokens]
        assert end.reason == "abort" or tokens[run_id] == answers[run_id]
    assert {end.reason for end in ends.values()} == {"abort", "length"}


# --- losing the daemon ---


async def test_nothing_of_a_dead_daemons_runs_reaches_the_next(
    make_daemon: Callable[..., ScriptedDaemon], address: str
) -> None:
    engine = sim_engine(speed=20)
    async with running(make_link(address, engine)):
        first = make_daemon(b"daemon-1")
        await first.greet()
        await first.say(Batch(tuple(submit(f"old{seed}", prompt(seed, 20), 10_000) for seed in range(4))))
        await first.next_frame()
        first.close()
        second = make_daemon(b"daemon-2")
        ready = await second.greet()
        assert ready.next_seq > 1
        await second.say(Batch((submit("new", prompt(9, 20), 10),)))
        assert set(await second.hear_ends(1)) == {"new"}
        for seq in range(ready.next_seq, ready.next_seq + 10):
            _, frame = await second.next_frame()
            assert (frame.seq, [chunk.run_id for chunk in frame.chunks]) == (seq, ["new"])
        await second.say(Replay(1, ready.next_seq))
        assert (await second.hear(Replayed)).first_seq == ready.next_seq
        await second.hear_beat(lambda beat: beat.running == 0 and beat.kv_used_tokens == 0)


@pytest.mark.parametrize("same_life", [True, False])
async def test_a_daemon_that_does_not_know_us_is_greeted_anew(
    daemon: ScriptedDaemon, address: str, same_life: bool
) -> None:
    engine = sim_engine(speed=20)
    async with running(make_link(address, engine)):
        await daemon.greet()
        await daemon.say(Batch((submit("old", prompt(1, 20), 10_000),)))
        await daemon.next_frame()
        if not same_life:
            daemon.epoch = b"daemon-2"
            daemon.subscribe(daemon.epoch)
        await daemon.say(Introduce())
        await daemon.say(Batch((submit("on its way", prompt(2, 20), 10_000),)))
        ready = await daemon.greet()
        assert ready.next_seq > 1
        await daemon.hear_beat(lambda beat: beat.running == 0, skip=())


async def test_a_welcome_of_another_life_ends_the_runs_of_the_one_before(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine(speed=20))):
        await daemon.greet()
        await daemon.say(Batch((submit("old", prompt(1, 20), 10_000),)))
        await daemon.next_frame()
        daemon.subscribe(b"daemon-2")
        await daemon.say(Welcome(b"daemon-2"))
        await daemon.hear(Ready)
        await daemon.hear_beat(lambda beat: beat.running == 0, skip=())


async def test_runs_of_a_silent_daemon_are_aborted_but_not_of_one_that_pulses(
    daemon: ScriptedDaemon, address: str
) -> None:
    settings = msgspec.structs.replace(QUICK, alone_abort_s=0.3)
    engine = sim_engine(speed=20)
    async with running(make_link(address, engine, settings)):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 10_000),)))
        for _ in range(12):
            await asyncio.sleep(0.05)
            await daemon.say(Pulse())
            assert engine.load().running == 1 or engine.load().queued == 1
        await daemon.hear(Hello)  # silent from here on
        assert engine.load().running == 0
        ready = await daemon.greet()
        await daemon.say(Batch((submit("b", prompt(2, 20), 1),)))
        assert set(await daemon.hear_ends(1)) == {"b"}
        assert ready.next_seq > 1


async def test_a_worker_alone_for_too_long_exits(daemon: ScriptedDaemon, address: str) -> None:
    settings = msgspec.structs.replace(QUICK, alone_exit_s=0.3)
    async with running(make_link(address, sim_engine(), settings)) as link:
        await daemon.greet()
        await daemon.hear(Leaving)
        assert (await link).code == 0


async def test_no_daemon_at_all_for_too_long(address: str) -> None:
    settings = msgspec.structs.replace(QUICK, alone_exit_s=0.2)
    ending = await make_link(address, sim_engine(), settings).run()
    assert ending.code == 0
    assert "no daemon" in ending.reason


async def test_a_daemon_that_reads_nothing_is_given_up_once_there_is_no_room(
    daemon: ScriptedDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prebled.worker import link_sockets

    monkeypatch.setattr(link_sockets, "OUTBOX_MESSAGES", 100)
    engine = ScriptedEngine()
    engine.loaded.set()
    async with running(make_link(address, engine)):
        await daemon.greet()
        kept = RunId("kept")
        await daemon.say(Batch((submit(kept, [1], 9),)))
        await daemon.hear_beat(lambda beat: beat.running == 1)
        sent = 0
        while kept not in engine.aborted:  # the daemon reads nothing; each refusal has to arrive
            await daemon.say(Batch(tuple(submit(f"r{sent + n}", [], 1) for n in range(500))))
            sent += 500
            assert sent < 50_000
            await asyncio.sleep(0)
        refused = 0
        while True:
            message = await daemon.next_message()
            if isinstance(message, Hello):
                break  # both sides start anew
            refused += isinstance(message, Failed)
        assert 100 < refused < sent


async def test_our_own_standstill_is_not_the_daemons_silence(daemon: ScriptedDaemon, address: str) -> None:
    settings = msgspec.structs.replace(QUICK, alone_abort_s=0.4)
    async with running(make_link(address, sim_engine(speed=20), settings)):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 10_000),)))
        await daemon.next_frame()
        await asyncio.sleep(0.1)
        time.sleep(0.6)  # noqa: ASYNC251 - that the loop stands still is the point
        for _ in range(4):
            await daemon.hear_beat(lambda beat: beat.running == 1, skip=())  # and no Hello


# --- parting ---


async def test_a_draining_worker_finishes_and_takes_nothing_new(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine(speed=50))) as link:
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 40),)))
        await daemon.next_frame()
        await daemon.say(Drain())
        await daemon.say(Batch((submit("b", prompt(2, 20), 1),)))
        assert (await daemon.hear_beat(lambda beat: beat.phase != "ready", skip=())).phase == "draining"
        refused = await daemon.hear(Failed)
        assert (refused.run_id, refused.code, refused.retryable) == ("b", "draining", True)
        done = await daemon.hear(Done)
        assert (done.run_id, done.reason, done.output_tokens) == ("a", "length", 40)
        await daemon.hear(Beat, skip=())
        assert not link.done(), "it waits for Stop"


async def test_stop_aborts_and_says_so(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    async with running(make_link(address, engine)) as link:
        await daemon.greet()
        await daemon.say(Batch((submit("a", [1], 40),)))
        await daemon.say(Stop())
        assert "stopped by the daemon" in (await daemon.hear(Leaving)).reason
        assert await link == Ending(0, "stopped by the daemon")
    assert engine.stops == 1


@pytest.mark.parametrize(("with_run", "timeout_s"), [(False, 60.0), (True, 60.0), (True, 0.1)])
async def test_drained_on_a_signal_it_leaves_when_idle_or_late(
    daemon: ScriptedDaemon, address: str, with_run: bool, timeout_s: float
) -> None:
    link = make_link(address, sim_engine(speed=50))
    async with running(link) as ending:
        await daemon.greet()
        if with_run:
            await daemon.say(Batch((submit("a", prompt(1, 20), 40 if timeout_s > 1 else 30_000),)))
            await daemon.next_frame()
        link.drain(timeout_s)
        if timeout_s > 1 and with_run:
            assert (await daemon.hear(Done)).reason == "length"
        await daemon.hear(Leaving)
        assert (await ending).code == 0


async def test_drained_while_it_loads_it_leaves_at_once(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    link = make_link(address, engine)
    async with running(link) as ending:
        await daemon.hear(Hello)
        link.drain(60)
        await daemon.hear(Leaving, skip=(Hello,))
        assert (await ending).code == 0
    assert engine.stops == 1


async def _dies_in_a_step(engine: ScriptedEngine) -> None:
    engine.steps.put_nowait(EngineFailed("the scheduler died"))


async def _dies_on_submit(engine: ScriptedEngine) -> None:
    def fail(submits: object) -> None:
        raise EngineFailed("the scheduler died")

    engine.submit_nowait = fail  # type: ignore[method-assign]


@pytest.mark.parametrize("die", [_dies_in_a_step, _dies_on_submit])
async def test_a_dead_engine_is_told_within_a_second(
    daemon: ScriptedDaemon, address: str, die: Callable[[ScriptedEngine], Awaitable[None]]
) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    async with running(make_link(address, engine)) as link:
        await daemon.greet()
        await die(engine)
        await daemon.say(Batch((submit("a", [1], 40),)))
        async with asyncio.timeout(1):
            assert (await daemon.hear(Leaving)).reason == "the scheduler died"
            assert await link == Ending(1, "the scheduler died")
    assert engine.stops == 1


@pytest.mark.parametrize(("error", "code"), [(EngineFailed("no GPU"), 1), (SettingsError("no GPU", param="device"), 2)])
async def test_an_engine_that_does_not_load(daemon: ScriptedDaemon, address: str, error: Exception, code: int) -> None:
    engine = ScriptedEngine()
    engine.start_error = error
    async with running(make_link(address, engine)) as link:
        await daemon.hear(Hello)
        await daemon.say(Welcome(daemon.epoch))
        await daemon.hear(Beat, skip=(Hello,))
        engine.loaded.set()
        assert (await daemon.hear(Leaving)).reason == "no GPU"
        assert await link == Ending(code, "no GPU")
    assert engine.stops == 1


async def test_a_bug_is_raised_but_not_without_parting(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    link = make_link(address, engine)
    task = asyncio.ensure_future(link.run())
    await daemon.greet()
    engine.steps.put_nowait(ZeroDivisionError("ours"))
    await daemon.hear(Leaving)
    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert caught.value.subgroup(ZeroDivisionError)
    assert engine.stops == 1
