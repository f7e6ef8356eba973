"""How a worker notices that its daemon is gone, and outlives it. Over real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import pytest
from link_stage import QUICK, make_link, running, sim_engine
from scripted_daemon import ScriptedDaemon, ScriptedEngine
from sim_runs import prompt, submit

from prebled.core.types import RunId
from prebled.messages import Batch, Failed, Hello, Introduce, Leaving, Pulse, Ready, Replay, Replayed, Welcome


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
