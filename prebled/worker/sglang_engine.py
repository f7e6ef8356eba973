"""The real engine: SGLang 0.5.23 behind the `Engine` protocol, on a GPU or a CPU.

Drives SGLang's scheduler processes over their own sockets, one frame of theirs to one `EngineStep` of ours. There is no
second tokenizer or detokenizer: token ids go in and come out, and stop strings are the daemon's business. It keeps no
more of a run than its counts; what is cached and who is next is decided inside SGLang (see `sglang_queue` for our share
of that). The token that ended a run (end of sequence, or a stop token) is the last of its chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from prebled.core.types import RunId
from prebled.errors import EngineFailed, SettingsError
from prebled.messages import Capacity, KvChange, KvStored, StepSample, Submit
from prebled.worker import sglang_args
from prebled.worker.engine import EngineLoad, EngineStep
from prebled.worker.sglang_args import DEVICES
from prebled.worker.sglang_child import ChildFailed, ChildReady
from prebled.worker.sglang_kv import KvMirror, is_kv_frame
from prebled.worker.sglang_plugin import GROUPS
from prebled.worker.sglang_process import SchedulerProcesses
from prebled.worker.sglang_runs import OpenRuns
from prebled.worker.sglang_steps import decode_steps
from prebled.worker.sglang_warm_up import WARM_UP, is_measured, measured_rounds
from prebled.worker.sglang_wire import LoadSnapshot, SchedulerWire, decode_child

log = structlog.get_logger()

_FIRST_SNAPSHOT_S = 10.0
_LAST_SAMPLES_S = 1.0


class SGLangEngine:
    """See `prebled.worker.engine.Engine`. To be made in the event loop of the main thread that uses it."""

    def __init__(
        self,
        model: str,
        *,
        block_tokens: int = 64,
        kv_tokens: int = 0,
        context_tokens: int = 0,
        tp: int = 1,
        queue_policy: str = GROUPS,
        device: str = "auto",
        server_args: Mapping[str, Any] | None = None,
        measure_s: float = 0.0,
    ) -> None:
        """`model`: a folder or a name on the Hugging Face hub. Zeros leave the choice to SGLang (on the CPU, 65,536 KV
        tokens). `queue_policy`: `groups` or one of SGLang's. `server_args`: more of SGLang's arguments, by name.
        `measure_s`: how long steps may be measured at the start; the first `wait_step` gives out the samples. Raises
        SettingsError for an argument that is not to be set, an unknown device and an unknown policy."""
        if device not in DEVICES:
            raise SettingsError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
        self._model = model
        self._tp = tp
        self._device = device
        self._queue_policy = queue_policy
        self._block_tokens = block_tokens
        self._arguments = sglang_args.server_args(
            model,
            block_tokens=block_tokens,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            tp=tp,
            queue_policy=queue_policy,
            more=server_args or {},
        )
        self._processes: SchedulerProcesses | None = None
        self._wire: SchedulerWire | None = None
        self._runs = OpenRuns()
        self._mirror = KvMirror(block_tokens)
        self._snapshot = LoadSnapshot()
        self._measure_s = measure_s
        self._measured: tuple[StepSample, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the scheduler processes, by rank; none unless started."""
        return self._processes.pids if self._processes is not None else ()

    async def start(self, report: Callable[[str], None]) -> Capacity:
        sglang_args.check_folder(self._model)
        self._processes = SchedulerProcesses()
        try:
            report(f"loading {self._model} into SGLang")
            environment = sglang_args.environment(self._queue_policy, self._tp)
            self._processes.start(self._tp, self._device, self._arguments, environment)
            ready = await self._wait_ready()
            most_prompt, most_total = _limits(ready, self._block_tokens)
            await self._processes.wait_connected()
            report(f"warming up {self._model}")
            await self._warm_up()
            if self._measure_s > 0:
                report(f"measuring {self._model}")
                await self._measure()
            self._processes.remove_files()
        except BaseException:
            await self.stop()
            raise
        return Capacity(
            model=self._model,
            engine="sglang",
            device=ready.device,
            block_tokens=self._block_tokens,
            kv_tokens=ready.kv_tokens,
            max_prompt_tokens=most_prompt,
            max_total_tokens=most_total,
            vocab_size=ready.vocab_size,
            max_running=self._snapshot.max_running_requests,
        )

    def submit_nowait(self, submits: Sequence[Submit]) -> None:
        processes, wire = self._started()
        self._runs.add(submits)
        if submits:
            processes.send(wire.encode_submits(submits))

    def abort_nowait(self, run_ids: Sequence[RunId]) -> None:
        processes, wire = self._started()
        for run_id in run_ids:
            if self._runs.abort(run_id):
                processes.send(wire.encode_abort(run_id))

    async def wait_step(self) -> EngineStep:
        processes, wire = self._started()
        if self._measured:
            samples, self._measured = self._measured, ()
            return EngineStep(samples=samples)
        while True:
            frame = await processes.wait_frame()
            steps = decode_steps(frame)
            if steps is not None:
                return EngineStep(samples=steps)
            step = EngineStep(kv=self._mirrored(frame)) if is_kv_frame(frame) else self._runs.take(wire.decode(frame))
            if step.chunks or step.done or step.failed or step.kv:
                return step

    def load(self) -> EngineLoad:
        """SGLang's own counts, at most a few decode steps old. Who waits and who runs is split by it; how many there
        are is known exactly."""
        frame = self._processes.newest_load() if self._processes is not None else None
        if frame is not None:
            self._snapshot = msgspec.msgpack.decode(frame, type=LoadSnapshot)
        queued = min(len(self._runs), self._snapshot.num_waiting_reqs)
        return EngineLoad(queued, len(self._runs) - queued, self._snapshot.num_used_tokens)

    def set_namespace(self, model: str) -> None:
        self._mirror.set_namespace(model)

    def held(self) -> tuple[KvStored, ...]:
        return self._mirror.held()

    async def stop(self) -> None:
        processes, self._processes = self._processes, None
        if processes is not None:
            await processes.stop()

    def _started(self) -> tuple[SchedulerProcesses, SchedulerWire]:
        if self._processes is None or self._wire is None:
            raise EngineFailed("the engine is not running")
        return self._processes, self._wire

    def _mirrored(self, frame: bytes) -> tuple[KvChange, ...]:
        before = dataclasses.replace(self._mirror.oddities)
        changes = self._mirror.take(frame)
        if self._mirror.oddities != before:
            log.warning("SGLang's KV events do not fit together", **dataclasses.asdict(self._mirror.oddities))
        return changes

    async def _wait_ready(self) -> ChildReady:
        """Wait for all ranks; rank 0 knows the layouts. Raises EngineFailed if one of them ends first."""
        assert self._processes is not None
        ready: dict[int, ChildReady] = {}
        while len(ready) < self._tp:
            try:
                message = decode_child(await self._processes.wait_frame())
            except EngineFailed as error:
                raise EngineFailed(f"SGLang did not load {self._model}: {error.message}") from None
            if isinstance(message, ChildFailed):
                raise EngineFailed(f"SGLang refused {self._model}: {message.message}")
            if message is not None:
                ready[message.rank] = message
        self._wire = SchedulerWire(ready[0].layouts)
        return ready[0]

    async def _warm_up(self) -> None:
        """One short run, too short to leave a block in the cache: no client shall wait for what SGLang builds at its
        first step. After it every connection is known to work, also that of the load snapshots."""
        await self._compute([WARM_UP])
        try:
            async with asyncio.timeout(_FIRST_SNAPSHOT_S):
                while not self._snapshot.max_running_requests:
                    await asyncio.sleep(0.01)
                    self.load()
        except TimeoutError:
            raise EngineFailed(f"SGLang reported no load within {_FIRST_SNAPSHOT_S:.0f} s") from None

    async def _measure(self) -> None:
        """Compute the rounds while there is time for the next one. Each is computed twice, and the second time counts:
        what SGLang builds when it first sees a size would be measured otherwise."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._measure_s
        samples: list[StepSample] = []
        for submits in measured_rounds(self._block_tokens, self._snapshot.max_running_requests):
            began_at = loop.time()
            await self._compute(submits)
            samples += await self._compute(submits)
            took_s = loop.time() - began_at
            if loop.time() + 4 * took_s > until:  # the rounds grow by so much at most
                break
        self._measured = tuple(samples)

    async def _compute(self, submits: Sequence[Submit]) -> list[StepSample]:
        """Let SGLang compute these runs alone; its steps, as far as they are reported soon after the end. Raises
        EngineFailed if a run fails."""
        self.submit_nowait(submits)
        samples: list[StepSample] = []

        async def take_step() -> None:
            step = await self.wait_step()
            if step.failed:
                raise EngineFailed(f"SGLang did not warm up: {step.failed[0].message}")
            samples.extend(step.samples)

        while len(self._runs):
            await take_step()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SAMPLES_S):
                while not is_measured(submits, samples):
                    await take_step()
        return samples


def _limits(ready: ChildReady, block_tokens: int) -> tuple[int, int]:
    """The longest prompt, and the most prompt and output tokens together. SGLang 0.5.23 takes inputs shorter than its
    limit, which is six below the context or the cache; at admission it sets aside a whole block beside the prompt,
    rounded up to blocks. What does not fit it cuts without a word. Raises EngineFailed if nothing fits."""
    most_total = min(ready.max_input_tokens + 4, ready.kv_tokens - 2 * block_tokens)
    most_prompt = min(ready.max_input_tokens, most_total) - 1
    if most_prompt < 1:
        raise EngineFailed(f"a KV cache of {ready.kv_tokens} tokens in blocks of {block_tokens} holds no request")
    return most_prompt, most_total
