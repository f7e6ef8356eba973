"""The timing of SGLang's steps, with SGLang's side and the clock played: what a step is, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from prebled.messages import StepSample
from prebled.worker.sglang_child import ChildReady
from prebled.worker.sglang_steps import SAMPLES_PER_MESSAGE, ChildSteps, StepMeter, StepWork, decode_steps, work_of
from prebled.worker.sglang_warm_up import OUTPUT_TOKENS, is_measured, measured_rounds
from prebled.worker.sglang_wire import decode_child


@dataclass
class Mode:
    """As much of SGLang's ForwardMode as is used."""

    kind: str

    def is_decode(self) -> bool:
        return self.kind == "decode"

    def is_extend(self) -> bool:
        return self.kind in ("extend", "mixed")


@dataclass
class Batch:
    """As much of SGLang's ScheduleBatch as is used."""

    forward_mode: Mode
    reqs: list[Any] = field(default_factory=list)
    seq_lens_cpu: Any = None
    extend_lens: list[int] | None = None
    prefix_lens: list[int] | None = None
    decoding_reqs: list[Any] | None = None
    launch_ts: float | None = None


def decode(*lengths: int) -> Batch:
    return Batch(Mode("decode"), [SimpleNamespace(seqlen=length) for length in lengths], np.array(lengths))


def extend(*rows: tuple[int, int], decoding: int = 0) -> Batch:
    """`rows`: tokens computed and tokens before them; the last `decoding` rows decode."""
    return Batch(
        Mode("mixed" if decoding else "extend"),
        extend_lens=[new for new, _ in rows],
        prefix_lens=[before for _, before in rows],
        decoding_reqs=[None] * decoding if decoding else None,
    )


class Scheduler:
    """SGLang's loop, step by step, on a clock that only moves when something takes time."""

    def __init__(self, *, is_result_at_hand: bool = True) -> None:
        self.now = 100.0
        self.frames: list[bytes] = []
        self.meter = StepMeter(lambda: self.now)
        self.meter.report_to(self.frames.append, is_result_at_hand=is_result_at_hand)

    @property
    def samples(self) -> list[StepSample]:
        self.idle(0.0)
        return [sample for frame in self.frames for sample in decode_steps(frame) or ()]

    def takes(self, seconds: float) -> Callable[..., None]:
        def work(*args: Any, **options: Any) -> None:
            self.now += seconds

        return work

    def idle(self, seconds: float) -> None:
        self.meter.around_idle(self.takes(seconds), None)

    def order(self, seconds: float) -> None:
        self.meter.around_order(None)(self.takes(seconds), None, [])

    def launch(self, batch: Batch, seconds: float) -> None:
        batch.launch_ts = self.now
        self.now += seconds

    def results(self, batch: Batch, seconds: float, wait_s: float | None = None) -> None:
        """Look at the results of a batch; `wait_s`: how long SGLang waits for them before that, with overlap."""
        event = None if wait_s is None else SimpleNamespace(synchronize=self.takes(wait_s))
        result = SimpleNamespace(copy_done=event)

        def process(scheduler: Any, batch: Batch, result: Any) -> None:
            if result.copy_done is not None:
                result.copy_done.synchronize()
            self.now += seconds

        self.meter.around_results(process, None, batch, result)  # type: ignore[arg-type]


def rounded(sample: StepSample) -> tuple[float, float, float]:
    return round(sample.step_s, 9), round(sample.model_s, 9), round(sample.order_s, 9)


@pytest.mark.parametrize(
    ("batch", "work"),
    [
        (decode(10, 20, 30), StepWork(0, 0, 0, 3, 60)),
        (extend((100, 0)), StepWork(100, 100, 100 * 100, 0, 0)),
        # the second chunk of a prompt beside a prompt with a cached prefix
        (extend((512, 512), (7, 64)), StepWork(519, 1024 + 71, 512 * 1024 + 7 * 71, 0, 0)),
        # a prompt of one uncached token is not a decoding run
        (extend((1, 64), (1, 99), (1, 199), decoding=2), StepWork(1, 65, 65, 2, 300)),
        (Batch(Mode("idle")), None),
        (Batch(Mode("prebuilt")), None),
    ],
)
def test_what_a_batch_computes(batch: Batch, work: StepWork | None) -> None:
    assert work_of(batch) == work  # type: ignore[arg-type]


def test_contexts_are_counted_without_the_lengths_too() -> None:
    batch = decode(10, 20)
    batch.seq_lens_cpu = None
    assert work_of(batch) == StepWork(0, 0, 0, 2, 30)  # type: ignore[arg-type]


def test_a_step_lasts_from_the_end_of_the_one_before() -> None:
    scheduler = Scheduler()
    for batch in (extend((100, 0)), decode(101)):
        scheduler.order(0.5)
        scheduler.now += 1.0
        scheduler.launch(batch, 2.0)
        scheduler.results(batch, 0.25)
    assert [rounded(sample) for sample in scheduler.samples] == [(3.75, 2.0, 0.5)] * 2


def test_time_without_work_counts_to_no_step() -> None:
    scheduler = Scheduler()
    batch = decode(5)
    scheduler.launch(batch, 1.0)
    scheduler.results(batch, 0.0)
    scheduler.order(3.0)  # in vain: nothing was admitted
    scheduler.idle(1000.0)
    scheduler.now += 0.5
    scheduler.launch(batch, 1.0)
    scheduler.results(batch, 0.0)
    assert [rounded(sample) for sample in scheduler.samples] == [(1.0, 1.0, 0.0), (1.5, 1.0, 0.0)]


def test_with_overlap_a_step_ends_when_its_result_is_there() -> None:
    """The device takes 10 s a step; the host launches the next one at once and works 2 s on results meanwhile."""
    scheduler = Scheduler(is_result_at_hand=False)
    scheduler.idle(50.0)
    batches = [decode(5 + index) for index in range(4)]
    scheduler.launch(batches[0], 1.0)
    device_free_at = scheduler.now - 1.0 + 10.0
    for before, batch in pairwise(batches):
        scheduler.launch(batch, 1.0)
        scheduler.results(before, 2.0, wait_s=device_free_at - scheduler.now)
        device_free_at += 10.0
    scheduler.results(batches[-1], 2.0, wait_s=device_free_at - scheduler.now)
    assert [rounded(sample) for sample in scheduler.samples] == [(10.0, 10.0, 0.0)] * 4


def test_with_overlap_the_device_that_waits_for_the_host_is_seen() -> None:
    """The device takes 1 s a step, the host 4 s between two launches: three quarters of a step are not the model's."""
    scheduler = Scheduler(is_result_at_hand=False)
    scheduler.idle(50.0)
    for index in range(3):
        batch = decode(5 + index)
        scheduler.launch(batch, 1.0)
        scheduler.results(batch, 3.0, wait_s=0.0)
    assert [rounded(sample) for sample in scheduler.samples] == [(1.0, 1.0, 0.0), (4.0, 1.0, 0.0), (4.0, 1.0, 0.0)]


def test_on_a_gpu_without_overlap_passing_on_counts_to_the_model() -> None:
    scheduler = Scheduler(is_result_at_hand=False)
    batch = decode(5)
    scheduler.now += 0.5
    scheduler.launch(batch, 1.0)
    scheduler.results(batch, 2.0)
    assert [rounded(sample) for sample in scheduler.samples] == [(3.5, 3.0, 0.0)]


def test_steps_are_reported_together_and_at_once_when_idle() -> None:
    scheduler = Scheduler()
    for _ in range(SAMPLES_PER_MESSAGE + 2):
        scheduler.results(decode(5), 0.001)
    assert len(scheduler.frames) == 1
    assert scheduler.frames[0] == msgspec.msgpack.encode(ChildSteps(tuple(scheduler.samples[:SAMPLES_PER_MESSAGE])))
    assert len(scheduler.frames) == 2
    scheduler.results(decode(5), 0.001)
    scheduler.results(decode(5), 0.060)  # the one before has waited long enough
    assert len(scheduler.frames) == 3


def test_a_rank_that_reports_nowhere_only_passes_calls_on() -> None:
    meter, calls = StepMeter(), []
    batch, result = object(), SimpleNamespace(copy_done=object())
    meter.around_results(lambda *args: calls.append(args), "scheduler", batch, result)  # type: ignore[arg-type]
    meter.around_idle(lambda *args: calls.append(args), "scheduler")
    meter.around_order(None)(lambda *args, **options: calls.append((args, options)), "policy", [], tokens=3)
    meter.around_order(lambda original, *args: original(*args))(lambda *args: calls.append(args), "policy", [])
    assert calls == [("scheduler", batch, result), ("scheduler",), (("policy", []), {"tokens": 3}), ("policy", [])]
    assert type(result.copy_done) is object


def test_messages_of_others_are_none_of_ours() -> None:
    ready = msgspec.msgpack.encode(ChildReady(0, "cpu", 1, 1, 1, {}))
    steps = msgspec.msgpack.encode(ChildSteps(()))
    assert decode_steps(ready) is None
    assert decode_steps(msgspec.msgpack.encode(["BatchTokenIDOutput", []])) is None
    assert decode_steps(steps) == ()
    assert decode_child(steps) is None


def test_the_measured_rounds_leave_no_block_and_fit_the_engine() -> None:
    rounds = measured_rounds(64, 16)
    assert [len(submits) for submits in rounds] == [1, 1, 2, 2, 4, 4, 16, 16]
    for submits in rounds:
        assert len({submit.run_id for submit in submits}) == len(submits)
        for submit in submits:
            assert len(submit.tokens) // 4 + submit.sampling.max_tokens < 64
    assert measured_rounds(8, 16) == []
    [submit] = rounds[0]
    tokens = len(submit.tokens) // 4
    prefill = StepSample(tokens, tokens, tokens**2, 0, 0, 1.0, 1.0)
    decodes = [StepSample(0, 0, 0, 1, tokens + made, 1.0, 1.0) for made in range(1, OUTPUT_TOKENS)]
    assert is_measured([submit], [prefill, *decodes])
    assert not is_measured([submit], [prefill, *decodes[1:]])
    assert not is_measured([submit], decodes)
