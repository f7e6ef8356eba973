"""How a worker says again what was lost on the way, over real sockets, against a scripted daemon."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import msgspec
import pytest
from link_stage import QUICK, collect, make_link, running, sim_engine
from scripted_daemon import ScriptedDaemon
from sim_runs import expected_tokens, prompt, submit

from prebled.core.types import Epoch, RunId
from prebled.messages import FRAME, Abort, Batch, Done, Replay, Replayed, Tokens
from prebled.worker import run_service


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
