"""`prebled bench queue`, as far as it needs no SGLang: what it counts, what it works out, what it refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import pytest

from prebled.bench.queue_burst import Burst, burst
from prebled.bench.queue_cost import measure_cost
from prebled.bench.queue_starvation import Starvation, starve
from prebled.core.types import RunId
from prebled.errors import EngineFailed
from prebled.messages import Capacity, Chunk, StepSample, Submit
from prebled.settings import SimSettings
from prebled.worker.engine import EngineStep, RunDone, RunFailed
from prebled.worker.sim_engine import SimEngine

ORDER_US = (0.0, 100.0, 0.0, 300.0)


class ScriptedEngine:
    """Every step brings all of a run's tokens, first come first served; of `ORDER_US`, one after the other."""

    def __init__(self, *, is_measured: bool = True, fails_at: int = -1) -> None:
        self.queue: list[Submit] = []
        self.steps = 0
        self.most_open = 0
        self._is_measured = is_measured
        self._fails_at = fails_at

    def submit_nowait(self, submits: Sequence[Submit]) -> None:
        self.queue += submits
        self.most_open = max(self.most_open, len(self.queue))

    async def wait_step(self) -> EngineStep:
        await asyncio.sleep(0)
        run = self.queue.pop(0)
        self.steps += 1
        if self.steps == self._fails_at:
            return EngineStep(failed=(RunFailed(run.run_id, "internal", "as told"),))
        order_s = ORDER_US[self.steps % len(ORDER_US)] / 1e6
        sample = StepSample(1, 1, 1, 0, 0, step_s=0.01, model_s=0.009, order_s=order_s)
        return EngineStep(
            chunks=(Chunk(run.run_id, (1,) * run.sampling.max_tokens, 0),),
            done=(RunDone(run.run_id, "length", len(run.tokens) // 4, 0, run.sampling.max_tokens),),
            samples=(sample,) if self._is_measured else (),
        )


CAPACITY = Capacity("m", "scripted", "cpu", 64, 4096, 1024, 1024, 2048, 4)


async def cost(engine: ScriptedEngine, steps: int = 40) -> dict[str, float]:
    report = await measure_cost(
        engine,  # type: ignore[arg-type]
        CAPACITY,
        policy="groups",
        waiting=10,
        steps=steps,
        prompt_tokens=100,
        output_tokens=3,
    )
    return {name: getattr(report, name) for name in report.__struct_fields__ if name != "policy"}


async def test_cost_is_worked_out_over_steps_and_over_orders() -> None:
    engine = ScriptedEngine()
    assert await cost(engine) == {
        "waiting": 10,
        "steps": 40,
        "step_ms": 10.0,
        "orders": 20,
        "order_us": 200.0,
        "order_p50_us": 200.0,
        "order_p99_us": 300.0,
        "order_us_per_step": 100.0,
        "share": 0.01,
    }
    assert engine.most_open == 10 + 4  # as many wait beside those that run, all the time
    assert engine.steps == 4 + 40


async def test_an_engine_that_fails_or_measures_nothing_is_an_error() -> None:
    with pytest.raises(EngineFailed, match="as told"):
        await cost(ScriptedEngine(fails_at=7))
    with pytest.raises(EngineFailed, match="no steps"):
        await cost(ScriptedEngine(is_measured=False), steps=3)


async def starved(queue_policy: str) -> Starvation:
    settings = SimSettings(kv_tokens=16384, context_tokens=8192, max_running=2, speed=1000.0)
    engine = SimEngine(settings, 64, model="m", vocab_size=2048, eos_token_ids=(0,), queue_policy=queue_policy)
    capacity = await engine.start(lambda text: None)
    try:
        return await starve(
            engine, capacity, policy=queue_policy, shorts=80, waiting=80, ahead=2, longs=3, output_tokens=2
        )
    finally:
        await engine.stop()


async def test_starvation_is_counted_in_requests_served() -> None:
    fcfs, groups = await starved("fcfs"), await starved("groups")
    assert (fcfs.shorts_before, fcfs.overtaken_by) == ([2, 2, 2], [0, 0, 0])
    assert fcfs.shorts == groups.shorts == 80
    assert fcfs.short_cached == groups.short_cached == pytest.approx(512 / 576, abs=0.001)
    assert fcfs.bound == [3 * 66, 4 * 66, 5 * 66]
    assert len(groups.long_ttft_s) == 3
    assert groups.shorts_before[0] < groups.shorts_before[1] < groups.shorts_before[2] <= 30
    assert groups.overtaken_by[2] == groups.shorts_before[2] - 2


async def test_a_stream_is_kept_up_until_its_end() -> None:
    settings = SimSettings(kv_tokens=16384, context_tokens=8192, max_running=2, speed=1000.0)
    engine = SimEngine(settings, 64, model="m", vocab_size=2048, eos_token_ids=(0,))
    capacity = await engine.start(lambda text: None)
    try:
        report = await starve(engine, capacity, policy="groups", shorts=50, waiting=5, ahead=0, longs=1)
    finally:
        await engine.stop()
    assert report.shorts == 50


async def test_a_burst_is_counted_in_tokens() -> None:
    """The scripted engine caches nothing."""
    report = await burst(
        ScriptedEngine(),  # type: ignore[arg-type]
        CAPACITY,
        policy="groups",
        families=3,
        copies=4,
        prefix_tokens=130,
        tail_tokens=10,
    )
    assert report == Burst("groups", 12, 12 * 140, 12 * 140, 12 * 140 - 3 * 3 * 128, report.ttft_s, report.last_ttft_s)
    assert 0 <= report.ttft_s <= report.last_ttft_s


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--policies", "groups,fifo"), "'fifo'"),
        (("--waiting", "0"), "0: must be at least 1"),
        (("--starvation", "--ahead", "40"), "--ahead 40, --waiting 32, --shorts 300"),
        (("--starvation", "--waiting", "400"), "--waiting 400, --shorts 300"),
        (("--starvation", "--ahead", "-1"), "--ahead -1"),
        (("--starvation", "--burst"), "not allowed with"),
    ],
)
def test_odd_arguments_are_refused(arguments: tuple[str, ...], named: str) -> None:
    command = [sys.executable, "-m", "prebled.cli", "bench", "queue", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stdout == ""


def test_run_ids_are_new_ones() -> None:
    from prebled.bench.queue_engine import EngineRuns

    runs = EngineRuns(ScriptedEngine())  # type: ignore[arg-type]
    assert runs.submit([(b"\0" * 4, 1)] * 2) + runs.submit([(b"\0" * 4, 1)]) == [RunId(f"run-{n}") for n in range(3)]
    assert len(runs) == 3
