"""How a worker ends. Over real sockets, against a scripted daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from link_stage import make_link, running, sim_engine
from scripted_daemon import ScriptedDaemon, ScriptedEngine
from sim_runs import prompt, submit

from prebled.errors import EngineFailed, SettingsError
from prebled.messages import Batch, Beat, Done, Drain, Failed, Hello, Leaving, Stop, Welcome
from prebled.worker.link import Ending


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
