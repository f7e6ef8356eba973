"""How a worker serves its daemon: runs, frames and ends, over real sockets, against a scripted daemon."""

from __future__ import annotations

import msgspec
import pytest
from link_stage import collect, make_link, running, sim_engine
from scripted_daemon import ScriptedDaemon, ScriptedEngine
from sim_runs import VOCAB_SIZE, expected_tokens, prompt, submit

from prebled.core.types import Epoch, RunId
from prebled.messages import Abort, Batch, Beat, Chunk, Done, Failed, Message, Pulse, Tokens, encode
from prebled.worker import run_service
from prebled.worker.engine import EngineStep, RunDone, RunFailed


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
