"""The runtime between doors and fabric: real scheduler and tokenizer, workers that do what the test says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RunId, WorkerId
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.runtime import Runtime
from prebled.daemon.tokenizing import Tokenizing
from prebled.errors import NotFound, PromptTooLong, Unavailable, WorkerFailed
from prebled.messages import Beat, Capacity, Chunk, Done, Failed, StepSample, Submit, Usage
from prebled.model_files import load_model_files
from prebled.settings import CoreSettings, LimitSettings

CAPACITY = Capacity("m", "sim", "sim", 64, 10_000, 900, 1000, 2048, 8)
LIMITS = LimitSettings(max_runs=3)
PROMPT = GenerateInput(prompt="Once upon a time", max_tokens=6)


class Sender:
    """Stands for the fabric: remembers what it was told."""

    def __init__(self) -> None:
        self.sent: list[tuple[WorkerId, Submit]] = []
        self.aborted: list[RunId] = []
        self.takes = True

    def submit_nowait(self, worker_id: WorkerId, submit: Submit) -> bool:
        if self.takes:
            self.sent.append((worker_id, submit))
        return self.takes

    def abort_nowait(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        self.aborted.extend(run_ids)


class Stage:
    """A runtime with workers that are there."""

    def __init__(self, model: Path, *workers: str) -> None:
        core = CoreSettings()
        scheduler = GlobalScheduler(make_policy("e2", core), core, block_tokens=64, max_waiting=10, retry_after_s=1.0)
        self.scheduler = scheduler
        self.tokenizing = Tokenizing.load(load_model_files(str(model)))
        self.sender = Sender()
        self.runtime = Runtime(
            scheduler, self.tokenizing, served_model_name="m", policy="e2", limits=LIMITS, daemon_epoch=bytes(8)
        )
        self.runtime.attach(self.sender)
        for name in workers:
            self.ready(name)

    def ready(self, name: str, epoch: int = 1) -> None:
        self.runtime.worker_known(WorkerId(name), Epoch(epoch), 1, "sim")
        self.runtime.worker_ready(WorkerId(name), Epoch(epoch), CAPACITY)

    def tokens(self, *tokens: int, cached: int = -1) -> None:
        worker_id, submit = self.sender.sent[-1]
        self.runtime.run_chunk(worker_id, Chunk(submit.run_id, tokens, cached))

    def done(self, reason: Any, output: int) -> None:
        worker_id, submit = self.sender.sent[-1]
        self.runtime.run_done(worker_id, Done(Epoch(1), submit.run_id, 1, reason, 5, 0, output))

    def lose(self) -> None:
        self.runtime.worker_lost(self.sender.sent[-1][0], "test")


@pytest.fixture
def stage(tiny_model: Path) -> Stage:
    return Stage(tiny_model, "w0", "w1")


async def test_a_lost_worker_is_continued_from_what_was_sent(stage: Stage) -> None:
    stream = await stage.runtime.generate(PROMPT)
    first_worker, first = stage.sender.sent[-1]
    stage.tokens(50, 51, cached=3)
    stage.lose()
    second_worker, second = stage.sender.sent[-1]
    assert second_worker != first_worker
    assert second.run_id != first.run_id
    assert second.tokens == first.tokens + (50).to_bytes(4, "little") + (51).to_bytes(4, "little")
    assert second.sampling.max_tokens == 4
    stage.runtime.run_chunk(first_worker, Chunk(first.run_id, (99,)))  # a late frame of the old run
    stage.tokens(52, 53, 54, 55, cached=0)
    stage.done("length", 4)
    updates = [update async for update in stream]
    assert [token for update in updates for token in update.tokens] == [50, 51, 52, 53, 54, 55]
    assert updates[-1].usage == Usage(len(first.tokens) // 4, 6, 3)  # as of the first placement
    assert stage.runtime.in_flight() == 0


@pytest.mark.parametrize(("tokens", "reason"), [((50, 51, 52, 53, 54, 55), "length"), ((50, 2), "stop")])
async def test_what_was_complete_when_its_worker_died_is_finished(
    stage: Stage, tokens: tuple[int, ...], reason: str
) -> None:
    stream = await stage.runtime.generate(PROMPT)
    stage.tokens(*tokens, cached=0)
    stage.lose()
    assert len(stage.sender.sent) == 1
    assert [update async for update in stream][-1].reason == reason
    assert stage.runtime.in_flight() == 0


async def test_a_request_that_its_workers_die_of_does_not_visit_all(stage: Stage) -> None:
    stream = await stage.runtime.generate(PROMPT)
    for epoch in range(2, 5):
        lost = stage.sender.sent[-1][0]
        stage.lose()
        stage.ready(lost, epoch)
    assert len(stage.sender.sent) == LIMITS.max_runs
    with pytest.raises(WorkerFailed, match="3 times"):
        await anext(stream)


async def test_a_run_the_worker_gave_up_or_refused_for_now_goes_on(stage: Stage) -> None:
    await stage.runtime.generate(PROMPT)
    stage.done("abort", 0)
    worker_id, submit = stage.sender.sent[-1]
    stage.runtime.run_failed(worker_id, Failed(Epoch(1), submit.run_id, "saturated", "full", retryable=True))
    assert len(stage.sender.sent) == 3
    assert stage.runtime.in_flight() == 1


async def test_a_run_refused_for_good_tells_the_client_why(stage: Stage) -> None:
    stream = await stage.runtime.generate(PROMPT)
    worker_id, submit = stage.sender.sent[-1]
    stage.runtime.run_failed(worker_id, Failed(Epoch(1), submit.run_id, "context_length_exceeded", "901 > 900"))
    with pytest.raises(PromptTooLong, match="901 > 900"):
        await anext(stream)
    assert stage.runtime.in_flight() == 0


async def test_a_stop_string_ends_the_request_and_aborts_the_run(stage: Stage) -> None:
    text = "Hello there"
    [*ids] = memoryview(await stage.tokenizing.encode_text(text, add_special_tokens=False)).cast("I")
    stream = await stage.runtime.generate(GenerateInput(prompt="Say hello", max_tokens=50, stop=("there",)))
    stage.tokens(*ids, 77, cached=0)
    updates = [update async for update in stream]
    assert "".join(update.text for update in updates) == "Hello "
    assert updates[-1].reason == "stop"
    assert stage.sender.aborted == [stage.sender.sent[-1][1].run_id]


async def test_closing_the_stream_aborts_once(stage: Stage) -> None:
    stream = await stage.runtime.generate(PROMPT)
    await stream.aclose()
    await stream.aclose()
    assert stage.sender.aborted == [stage.sender.sent[-1][1].run_id]
    assert stage.runtime.in_flight() == 0


async def test_what_cannot_be_sent_is_refused_and_leaves_nothing(stage: Stage) -> None:
    stage.sender.takes = False
    with pytest.raises(Unavailable):
        await stage.runtime.generate(PROMPT)
    assert stage.runtime.in_flight() == 0
    assert await stage.runtime.drain(0.0)


async def test_a_bug_in_the_scheduler_leaves_nothing_to_wait_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(event: object, now: float) -> Any:
        raise AssertionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(stage.scheduler, "handle", explode)
        with pytest.raises(AssertionError, match="a bug"):
            await stage.runtime.generate(PROMPT)
    assert stage.runtime.in_flight() == 0
    await stage.runtime.generate(PROMPT)
    assert len(stage.sender.sent) == 1


async def test_request_ids_are_kept_where_they_can_be_and_explained(stage: Stage) -> None:
    own = GenerateInput(prompt="Hello", max_tokens=1, request_id="mine-1")
    first = await stage.runtime.generate(own)
    second = await stage.runtime.generate(own)
    assert first.request_id == "mine-1"
    assert second.request_id != "mine-1"
    assert stage.runtime.explain("mine-1").request_id == "mine-1"
    with pytest.raises(NotFound, match="nobody"):
        stage.runtime.explain("nobody")


async def test_the_steps_on_a_beat_are_what_the_workers_costs_are_fitted_to(stage: Stage) -> None:
    steps = tuple(StepSample(0, 0, 0, 1, length, 0.5, 0.4) for length in range(100, 150))
    stage.runtime.worker_beat(WorkerId("w1"), Beat(Epoch(1), "ready", steps=steps, steps_left_out=3))
    stage.runtime.worker_beat(WorkerId("w1"), Beat(Epoch(1), "ready"))
    statistics = stage.scheduler.statistics()
    assert {one.worker_id: one.steps for one in statistics.workers} == {"w0": 0, "w1": 50}
    assert statistics.counters["steps_left_out"] == 3
