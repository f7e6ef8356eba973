"""The runs that SGLang has in hand: what is kept of each, and what the outputs of a step mean for them.

Rule it keeps: a run ends once. Whatever SGLang says of it afterwards (an abort and the run's own end may cross) is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from prebled.core.types import RunId
from prebled.errors import EngineFailed, InvalidValue
from prebled.messages import Chunk, FinishReason, Submit
from prebled.worker.engine import EngineStep, RunDone, RunFailed
from prebled.worker.sglang_wire import Output

_SERVER_ERROR = 500  # SGLang's reasons for an abort carry HTTP statuses; below this the request is to blame


class _Run(msgspec.Struct):
    """A run that has not ended. `cached_tokens` is -1 until its first tokens."""

    prompt_tokens: int
    output_tokens: int = 0
    cached_tokens: int = -1
    is_aborted: bool = False


class OpenRuns:
    """All runs that were submitted and have not ended."""

    def __init__(self) -> None:
        self._runs: dict[RunId, _Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, submits: Sequence[Submit]) -> None:
        for submit in submits:
            self._runs[submit.run_id] = _Run(len(submit.tokens) // 4)

    def abort(self, run_id: RunId) -> bool:
        """Note that the run is to end. False if there is nothing to do: it has ended, is unknown, or was told."""
        run = self._runs.get(run_id)
        if run is None or run.is_aborted:
            return False
        run.is_aborted = True
        return True

    def take(self, outputs: Iterable[Output]) -> EngineStep:
        """Account for a step's outputs and say what they mean."""
        chunks: list[Chunk] = []
        done: list[RunDone] = []
        failed: list[RunFailed] = []
        for output in outputs:
            run = self._runs.get(output.run_id)
            if run is None:
                continue
            if output.tokens:
                chunks.append(_chunk(run, output))
            if output.reason is not None:
                del self._runs[output.run_id]
                end = _end(run, output.run_id, output.reason)
                if isinstance(end, RunDone):
                    done.append(end)
                else:
                    failed.append(end)
        return EngineStep(tuple(chunks), tuple(done), tuple(failed))


def _chunk(run: _Run, output: Output) -> Chunk:
    run.output_tokens += len(output.tokens)
    if run.cached_tokens >= 0:
        return Chunk(output.run_id, output.tokens)
    run.cached_tokens = output.cached_tokens or 0
    return Chunk(output.run_id, output.tokens, run.cached_tokens)


def _end(run: _Run, run_id: RunId, reason: Mapping[str, Any]) -> RunDone | RunFailed:
    """A run that SGLang aborts without being asked has failed."""
    kind = reason["type"]
    if kind == "abort" and not run.is_aborted:
        is_ours = (reason.get("status_code") or _SERVER_ERROR) >= _SERVER_ERROR
        code = EngineFailed.code if is_ours else InvalidValue.code
        return RunFailed(run_id, code, f"SGLang ended the run: {reason.get('message') or 'no reason given'}", is_ours)
    finish: FinishReason = "abort" if kind == "abort" else "length" if kind == "length" else "stop"
    return RunDone(run_id, finish, run.prompt_tokens, max(run.cached_tokens, 0), run.output_tokens)
