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
from multiprocessing import get_context
from pathlib import Path
from threading import Lock, Thread
from typing import TypeVar

import msgspec

import prebled
from prebled.bench.lab.runs import Outcome, Overload, Run, carry_out, key_of, load
from prebled.bench.replay import BeyondLimits
from prebled.collector import settle

Item = TypeVar("Item")
Result = TypeVar("Result")

_DECIDING = (
    *("core/*.py", "worker/sim_*.py", "worker/sglang_gate.py", "settings.py"),
    *("bench/replay*.py", "bench/trace*.py", "bench/generators*.py"),
)


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
        self._outcomes: dict[str, Outcome | Overload] = {}
        content = self._path.read_bytes() if self._path.is_file() else b""
        for line in content.splitlines():
            try:
                outcome = msgspec.json.decode(line, type=Outcome | Overload)
            except msgspec.DecodeError:
                continue  # the line that was being written when the lab was killed
            self._outcomes[outcome.key] = outcome
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def get(self, run: Run) -> Outcome | Overload | None:
        """The outcome of a run that was carried out before."""
        return self._outcomes.get(key_of(run))

    def add(self, outcome: Outcome | Overload) -> None:
        """Remember."""
        self._outcomes[outcome.key] = outcome
        self._append(msgspec.json.encode(outcome) + b"\n")

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


def try_run(run: Run) -> Outcome | Overload:
    """The outcome, unless the replay was given up."""
    try:
        return carry_out(run)
    except BeyondLimits:
        return Overload(key_of(run), run.case.name, run.setup.label, run.workers)


def _run_settled(run: Run) -> Outcome | Overload:
    """In a process of a crew: with its garbage collector set as a daemon's is, which no decision waits for."""
    load(run.case, run.seed, run.limit)
    settle()
    return try_run(run)


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

    def __init__(
        self, notebook: Notebook, processes: int | None, progress: Callable[[Outcome | Overload], None]
    ) -> None:
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
        """The outcome of a run that asks nothing, from the notebook if it is there. Raises Stopped once a `map` was
        broken off."""
        found = self.try_out(run)
        assert found is not None, f"{run} was given up"
        return found

    def try_out(self, run: Run) -> Outcome | None:
        """As `run`; None if the load is beyond what the run asks, and it was given up."""
        found = self._find(run)
        return found if isinstance(found, Outcome) else None

    def _find(self, run: Run) -> Outcome | Overload:
        with self._lock:
            if self._is_stopped:
                raise Stopped
            known = self._notebook.get(run)
        if known is not None:
            return known
        found = self._pool.submit(_run_settled, run).result()
        with self._lock:
            self._notebook.add(found)
            self._progress(found)
        return found

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
