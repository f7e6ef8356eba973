"""Replays of the lab, in as many processes as there are cores, each outcome written down as soon as it is there.

An outcome depends on the run and on the code that made it (and on the file of its trace, which is taken not to
change); it is kept under both, so a lab that was interrupted goes on where it stopped, and a changed scheduler starts
anew. Only the times of its decisions and of the whole depend on the machine.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from threading import Lock, Thread
from typing import TypeVar

import msgspec

import prebled
from prebled.bench.lab.cases import Case
from prebled.bench.replay import ReplayResult, ReplaySettings, replay
from prebled.bench.trace import Trace
from prebled.settings import CoreSettings

Item = TypeVar("Item")
Result = TypeVar("Result")

TTFT_LIMIT_S = 5.0
TPOT_LIMIT_S = 0.2
"""Goodput counts requests within both."""

_DECIDING = (
    *("core/*.py", "worker/sim_*.py", "settings.py"),
    *("bench/replay*.py", "bench/trace*.py", "bench/generators*.py"),
)


class Setup(msgspec.Struct, frozen=True):
    """A policy with what is changed for it. `label` names it in tables; `core`: settings that differ from the
    defaults; `queue_policy`: of the workers."""

    label: str
    policy: str
    core: dict[str, float] = {}
    queue_policy: str = "groups"


class Run(msgspec.Struct, frozen=True):
    """One replay. `limit`: requests of the case, None for all."""

    case: Case
    setup: Setup
    workers: int
    seed: int
    rate_scale: float
    limit: int | None


class Outcome(msgspec.Struct, frozen=True):
    """What came of a run. Times in seconds; `rate`: requests that arrive in a second; `span_s`: from the first arrival
    to the last (in a closed loop, where arrivals follow ends: of the whole replay); `in_time`: share of the requests
    within the limits of goodput, 0.0 where any was refused."""

    key: str
    case: str
    label: str
    workers: int
    seed: int
    rate_scale: float
    requests: int
    failed: int
    rate: float
    span_s: float
    ttft_mean: float
    ttft_p99: float
    e2e_mean: float
    e2e_p99: float
    in_time: float
    hit_ratio: float
    imbalance: float
    decide_p50_us: float
    decide_p99_us: float
    wall_s: float

    @property
    def is_stable(self) -> bool:
        """Whether the load is within capacity: mean TTFT below 10 s and 4 % of the span of arrivals."""
        return not self.failed and self.ttft_mean < min(10.0, 0.04 * self.span_s)

    @property
    def is_good(self) -> bool:
        """Whether 99 % of the requests are in time."""
        return not self.failed and self.in_time >= 0.99


@lru_cache(maxsize=4)
def load(case: Case, seed: int, limit: int | None) -> Trace:
    """The trace of a case, kept by the process for the runs that follow."""
    return case.trace(seed, limit)


def carry_out(run: Run) -> Outcome:
    """Replay. Raises SettingsError for what cannot be."""
    trace = load(run.case, run.seed, run.limit)
    core = msgspec.structs.replace(CoreSettings(), **run.setup.core)
    result = replay(
        trace,
        run.setup.policy,
        workers=run.workers,
        profile=run.case.profile,
        kv_tokens=run.case.kv_tokens,
        rate_scale=run.rate_scale,
        settings=ReplaySettings(core=core, queue_policy=run.setup.queue_policy),
    )
    report = result.report
    first_s = min(request.arrival_s for request in trace.requests)
    span_s = (max(request.arrival_s for request in trace.requests) - first_s) / run.rate_scale
    if trace.is_closed_loop:
        span_s = report.sim_seconds
    return Outcome(
        key=key_of(run),
        case=run.case.name,
        label=run.setup.label,
        workers=run.workers,
        seed=run.seed,
        rate_scale=run.rate_scale,
        requests=report.requests,
        failed=report.failed,
        rate=report.requests / span_s if span_s else 0.0,
        span_s=span_s,
        ttft_mean=report.ttft_s.mean,
        ttft_p99=report.ttft_s.p99,
        e2e_mean=report.e2e_s.mean,
        e2e_p99=report.e2e_s.p99,
        in_time=0.0 if report.failed else _share_in_time(trace, result),
        hit_ratio=report.hit_ratio,
        imbalance=report.uncached_max_over_mean,
        decide_p50_us=report.decide_us.p50,
        decide_p99_us=report.decide_us.p99,
        wall_s=report.wall_seconds,
    )


def _share_in_time(trace: Trace, result: ReplayResult) -> float:
    """Of a replay in which every request was completed."""
    tpots = iter(result.tpot_s)
    late = 0
    for request, ttft_s in zip(trace.requests, result.ttft_s, strict=True):
        tpot_s = next(tpots) if request.output_tokens > 1 else 0.0
        late += ttft_s > TTFT_LIMIT_S or tpot_s > TPOT_LIMIT_S
    return 1 - late / len(trace.requests)


def key_of(run: Run) -> str:
    """Names the run."""
    return hashlib.sha256(msgspec.json.encode(run)).hexdigest()[:24]


def fingerprint() -> str:
    """Names the code that decides outcomes."""
    root = Path(prebled.__file__).parent
    digest = hashlib.sha256()
    for pattern in _DECIDING:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Notebook:
    """The outcomes so far, one file for each state of the code."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{fingerprint()}.jsonl"
        self._outcomes: dict[str, Outcome] = {}
        content = self._path.read_bytes() if self._path.is_file() else b""
        for line in content.splitlines():
            try:
                outcome = msgspec.json.decode(line, type=Outcome)
            except msgspec.DecodeError:
                continue  # the line that was being written when the lab was killed
            self._outcomes[outcome.key] = outcome
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def get(self, run: Run) -> Outcome | None:
        """The outcome of a run that was carried out before."""
        return self._outcomes.get(key_of(run))

    def add(self, outcome: Outcome) -> None:
        """Remember."""
        self._outcomes[outcome.key] = outcome
        self._append(msgspec.json.encode(outcome) + b"\n")

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


class Stopped(Exception):
    """The crew carries out no more runs."""


def _follow(parent: int) -> None:
    """In a process of a crew: a terminal's Ctrl-C comes to all its processes, and the one that started these sees to
    them; when that is killed, they end instead of working through what was queued."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class Crew:
    """Carries out runs in processes of its own; to be used as a context manager. `progress` hears of each new outcome.
    `run` may be called from many threads, and `map` does so."""

    def __init__(self, notebook: Notebook, processes: int | None, progress: Callable[[Outcome], None]) -> None:
        self._notebook = notebook
        self._processes = processes or os.cpu_count() or 1
        self._progress = progress
        self._lock = Lock()
        self._is_stopped = False

    def __enter__(self) -> Crew:
        # Fresh processes: they share nothing with this one, whatever it has open.
        self._pool = ProcessPoolExecutor(self._processes, get_context("spawn"), _follow, (os.getpid(),))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, run: Run) -> Outcome:
        """The outcome of a run, from the notebook if it is there. Raises Stopped once a `map` was broken off."""
        with self._lock:
            if self._is_stopped:
                raise Stopped
            known = self._notebook.get(run)
        if known is not None:
            return known
        outcome = self._pool.submit(carry_out, run).result()
        with self._lock:
            self._notebook.add(outcome)
            self._progress(outcome)
        return outcome

    def map(self, ask: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`ask` of each item, as many at once as there are processes; the results in order. Ends early, after the runs
        under way, with the first exception of `ask` in that order, or with this thread's own (Ctrl-C)."""
        with ThreadPoolExecutor(self._processes) as threads:
            futures = [threads.submit(ask, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._is_stopped = True
                for future in futures:
                    future.cancel()
                raise
