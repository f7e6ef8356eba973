"""`prebled bench lab`: every policy on every trace in virtual time; writes a page of tables and the plots."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prebled.commands.output import remark, write_line
from prebled.errors import SettingsError

if TYPE_CHECKING:
    from prebled.bench.lab.crew import Crew
    from prebled.bench.lab.runs import Outcome, Overload

Result = TypeVar("Result")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def configure(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments."""
    lab = benches.add_parser("lab", help="compare the policies on traces, in virtual time", allow_abbrev=False)
    lab.add_argument("--traces", type=Path, metavar="DIR", help="recorded traces (default: generated workloads)")
    lab.add_argument("--out", type=Path, default=Path("docs/results"), metavar="DIR", help="where results go")
    lab.add_argument("--notebook", type=Path, default=Path("var/lab"), metavar="DIR", help="outcomes, to go on from")
    lab.add_argument("--full", action="store_true", help="whole traces instead of cuts")
    lab.add_argument("--limit", type=int, default=2000, metavar="N", help="requests of a cut")
    lab.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    lab.add_argument("--workers", type=int, nargs="+", default=[4, 8], metavar="W")
    lab.add_argument("--only", nargs="+", metavar="CASE", help="these cases")
    lab.add_argument("--policies", nargs="+", metavar="P", help="these policies (default: all)")
    lab.add_argument("--processes", type=int, metavar="N", help="at once (default: one for each core)")
    lab.set_defaults(measure=_measure)


def _measure(args: argparse.Namespace) -> int:
    from prebled.bench.lab import plots, tables
    from prebled.bench.lab.campaign import OURS, Plan, run_campaign
    from prebled.bench.lab.cases import cases
    from prebled.core.policies import POLICIES, make_policy
    from prebled.settings import CoreSettings

    for name in args.policies or ():
        make_policy(name, CoreSettings())
    for name in ("limit", "seeds", "workers", "processes"):
        values = getattr(args, name)
        least = 0 if name == "seeds" else 1
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < least:
                raise SettingsError(f"--{name} is {value}, must be at least {least}", param=name)
    policies = tuple(dict.fromkeys([OURS, *(args.policies or POLICIES)]))
    if len(policies) < 2:
        raise SettingsError("--policies names none but e2: there is nothing to compare it with", param="policies")
    plan = Plan(
        workers=tuple(args.workers),
        seeds=tuple(args.seeds),
        limit=None if args.full else args.limit,
        policies=policies,
        parts_on=args.workers[0],
    )
    compared = cases(args.traces, args.only)
    plots.load_pyplot()  # before the replays: they may take an hour
    results = with_crew(args, lambda crew: run_campaign(crew, compared, plan))
    if results is None:
        return INTERRUPTED
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "lab.md"
    path.write_text(tables.page(results, plan, _command(args), machine_in_words()), encoding="utf-8")
    for picture in plots.draw(results, args.out):
        write_line(str(picture))
    write_line(str(path))
    return 0


def with_crew(args: argparse.Namespace, work: Callable[[Crew], Result]) -> Result | None:
    """What comes of `work` with a crew of `args.processes` that writes into `args.notebook`; None: it was interrupted,
    and the user was told how to go on."""
    from prebled.bench.lab.crew import Crew, Notebook

    try:
        with Crew(Notebook(args.notebook), args.processes, Progress()) as crew:
            return work(crew)
    except KeyboardInterrupt:
        remark(f"interrupted: the outcomes so far are in {args.notebook}, the same command goes on from there")
        return None


def machine_in_words() -> str:
    """What replays run on."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def _command(args: argparse.Namespace) -> str:
    """What makes the same page again; of folders no more than their names, and nothing of where outcomes were kept."""
    words: list[str] = ["prebled bench lab"]
    if args.traces is not None:
        words += ["--traces", args.traces.name]
    words += ["--full"] if args.full else ["--limit", str(args.limit)]
    for name in ("seeds", "workers", "only", "policies"):
        values = getattr(args, name)
        words += [f"--{name}", *(str(value) for value in values)] if values else []
    return " ".join(words)


class Progress:
    """Says on stderr how far a campaign is; each run that was carried out counts."""

    def __init__(self) -> None:
        self._runs = 0
        self._started = self._told = time.monotonic()

    def __call__(self, outcome: Outcome | Overload) -> None:
        self._runs += 1
        now = time.monotonic()
        if now - self._told >= (1 if sys.stderr.isatty() else 30):
            self._told = now
            place = f"{outcome.case}, {outcome.workers} workers, {outcome.label}"
            remark(f"{self._runs} runs in {now - self._started:.0f} s; last: {place}")
