"""Measured steps ride on beats: after Ready, once to each daemon, the newest of them."""

from __future__ import annotations

from link_stage import make_link, running
from scripted_daemon import ScriptedDaemon, ScriptedEngine

from prebled.messages import Beat, Introduce, StepSample
from prebled.worker.engine import EngineStep
from prebled.worker.step_log import MOST


def samples(count: int) -> tuple[StepSample, ...]:
    return tuple(StepSample(0, 0, 0, 1, 1 + index, 0.001, 0.001) for index in range(count))


async def hear_steps(daemon: ScriptedDaemon) -> Beat:
    return await daemon.hear_beat(lambda beat: bool(beat.steps))


async def test_steps_are_on_the_next_beat_and_on_no_other(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    engine.steps.put_nowait(EngineStep(samples=samples(3)))
    engine.steps.put_nowait(EngineStep(samples=samples(2)))
    async with running(make_link(address, engine)):
        await daemon.greet()
        heard = list((await hear_steps(daemon)).steps)
        while len(heard) < 5:
            heard += (await hear_steps(daemon)).steps
        assert tuple(heard) == samples(3) + samples(2)
        engine.steps.put_nowait(EngineStep(samples=samples(MOST + 10)))
        beat = await hear_steps(daemon)
        assert (beat.steps, beat.steps_left_out) == (samples(MOST + 10)[10:], 10)


async def test_a_daemon_that_lost_us_is_told_of_the_newest_steps_again(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    async with running(make_link(address, engine)):
        await daemon.greet()
        engine.steps.put_nowait(EngineStep(samples=samples(4)))
        assert (await hear_steps(daemon)).steps == samples(4)
        await daemon.say(Introduce())
        await daemon.greet()
        beat = await hear_steps(daemon)
        assert (beat.steps, beat.steps_left_out, beat.phase) == (samples(4), 0, "ready")
