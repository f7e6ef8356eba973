"""What each step of SGLang's scheduler computed and how long it took: hooks inside the scheduler's process.

Around `Scheduler.process_batch_result`, `Scheduler.on_idle` and `SchedulePolicy.calc_priority`; they read clocks and
what SGLang has on the host anyway, never wait for the device, and decide nothing, so every tensor-parallel rank runs on
as without them. Only the rank that has been told where to report to (rank 0) measures.

Where the result of a forward pass is on the host when `run_batch` returns (a CPU), a step ends when its results have
been passed on. With overlap scheduling (a GPU) the next batch is launched before the results of this one are looked at:
a step ends there when SGLang's own wait for its result (`copy_done.synchronize`) is over, and what is done with the
results counts to the next step, behind which it hides. A step begins where the one before it ended, or where the
scheduler was last idle. Its time in the model begins when it was launched, or when the result before it was there if
that was later (the device does one after the other), and ends when its own result is there; if the host looks late,
the delay counts to the model. On a GPU without overlap SGLang gives no sign of when it has the result: passing it on
is then counted to the model.

What it does not know: drafted tokens. A speculating sequence counts as one sequence, however many tokens it makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from prebled.messages import StepSample

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

SAMPLES_PER_MESSAGE = 16
"""Steps that are reported together, at most: a message wakes the worker, which need not be for every step."""

REPORT_S = 0.05
"""The oldest step in a message waits no longer than this for others, and not at all when the scheduler goes idle."""


class ChildSteps(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Steps of the scheduler, in order. A message of our own child, beside `ChildReady`."""

    samples: tuple[StepSample, ...]


_PREFIX = msgspec.msgpack.encode(ChildSteps(()))[:-1]  # all but the empty array of samples
_DECODER = msgspec.msgpack.Decoder(ChildSteps)


def decode_steps(frame: bytes) -> tuple[StepSample, ...] | None:
    """The steps in a scheduler's frame, None if it is another message."""
    return _DECODER.decode(frame).samples if frame.startswith(_PREFIX) else None


class StepWork(NamedTuple):
    """What a batch computes; the fields are those of `StepSample`."""

    new_tokens: int
    prompt_context_tokens: int
    attention: int
    sequences: int
    context_tokens: int


def work_of(batch: ScheduleBatch) -> StepWork | None:
    """The work of a batch that is about to have its results processed; None if no forward pass was made for it.

    A chunk of a prompt counts its own tokens, on a context that reaches to its end; so does a retracted run that is
    computed again. In a mixed batch the last rows decode."""
    mode = batch.forward_mode
    if mode.is_decode():
        lengths = batch.seq_lens_cpu
        context = sum(req.seqlen for req in batch.reqs) if lengths is None else int(lengths.sum())
        return StepWork(0, 0, 0, len(batch.reqs), context)
    if not mode.is_extend() or not batch.extend_lens:
        return None
    decoding = len(batch.decoding_reqs) if batch.decoding_reqs else 0
    prompts = len(batch.extend_lens) - decoding
    new_tokens = reached_tokens = attention = 0
    for new, before in zip(batch.extend_lens[:prompts], batch.prefix_lens[:prompts], strict=True):
        new_tokens += new
        reached_tokens += before + new
        attention += new * (before + new)
    context = sum(batch.prefix_lens[prompts:]) + decoding
    return StepWork(new_tokens, reached_tokens, attention, decoding, context)


class StepMeter:
    """The hooks, and what they remember from one call to the next. One per process, as there is one scheduler."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` must be the one that SGLang stamps its batches with."""
        self._clock = clock
        self._send: Callable[[bytes], object] | None = None
        self._is_result_at_hand = True
        self._began_at = clock()  # when the step in progress began
        self._result_at = self._began_at  # when the newest result was there
        self._order_s = 0.0
        self._samples: list[StepSample] = []
        self._report_at = 0.0

    def report_to(self, send: Callable[[bytes], object], *, is_result_at_hand: bool) -> None:
        """Measure from now on and send what is measured, encoded. `send` must not block. `is_result_at_hand`: a forward
        pass returns when its result is there, as on a CPU."""
        self._send = send
        self._is_result_at_hand = is_result_at_hand

    def around_order(self, hook: Callable[..., None] | None) -> Callable[..., None]:
        """A hook around `calc_priority` that times `hook`, or SGLang's own if that is None."""

        def order(calc_priority: Callable[..., None], *args: Any, **options: Any) -> None:
            began_at = self._clock()
            if hook is None:
                calc_priority(*args, **options)
            else:
                hook(calc_priority, *args, **options)
            self._order_s += self._clock() - began_at

        return order

    def around_idle(self, on_idle: Callable[..., None], *args: Any, **options: Any) -> None:
        """Around `Scheduler.on_idle`, which returns when there may be something to do."""
        self._flush()
        on_idle(*args, **options)
        self._began_at = self._clock()
        self._order_s = 0.0

    def around_results(
        self, process: Callable[..., None], scheduler: Any, batch: ScheduleBatch, result: Any, **options: Any
    ) -> None:
        """Around `Scheduler.process_batch_result`."""
        work = work_of(batch) if self._send is not None else None
        if work is None:
            process(scheduler, batch, result, **options)
            return
        called_at = self._clock()
        wait = None
        if getattr(result, "copy_done", None) is not None:
            wait = result.copy_done = _TimedWait(result.copy_done, self._clock)
        process(scheduler, batch, result, **options)
        ended_at = self._clock()
        if wait is not None and wait.over_at is not None:
            result_at = ended_at = wait.over_at
        else:
            result_at = called_at if self._is_result_at_hand else ended_at
        launched_at = max(batch.launch_ts or called_at, self._result_at)
        self._add(
            StepSample(
                *work,
                step_s=ended_at - self._began_at,
                model_s=max(result_at - launched_at, 0.0),
                order_s=self._order_s,
            )
        )
        self._began_at, self._result_at, self._order_s = ended_at, result_at, 0.0

    def _add(self, sample: StepSample) -> None:
        now = self._clock()
        if not self._samples:
            self._report_at = now + REPORT_S
        self._samples.append(sample)
        if len(self._samples) >= SAMPLES_PER_MESSAGE or now >= self._report_at:
            self._flush()

    def _flush(self) -> None:
        if self._samples and self._send is not None:
            self._send(msgspec.msgpack.encode(ChildSteps(tuple(self._samples))))
            self._samples.clear()


class _TimedWait:
    """SGLang's `copy_done` of a result, which also notes when the wait for it was over."""

    def __init__(self, event: Any, clock: Callable[[], float]) -> None:
        self._event = event
        self._clock = clock
        self.over_at: float | None = None

    def synchronize(self) -> None:
        self._event.synchronize()
        self.over_at = self._clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)


METER = StepMeter()
"""The one of this process."""
