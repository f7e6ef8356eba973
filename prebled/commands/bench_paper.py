"""`prebled bench paper`: the set-ups of Preble's evaluation in virtual time, beside the published latencies."""

from __future__ import annotations

import argparse
from pathlib import Path

from prebled.commands.bench_lab import INTERRUPTED, machine_in_words, with_crew
from prebled.commands.output import save_json, write_line
from prebled.errors import SettingsError


def configure(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments."""
    paper = benches.add_parser("paper", help="the set-ups of Preble's evaluation, in virtual time", allow_abbrev=False)
    paper.add_argument("--out", type=Path, default=Path("docs/results/paper.md"), metavar="FILE", help="the page")
    paper.add_argument("--json", metavar="FILE", help="write the outcomes as JSON; - is stdout")
    paper.add_argument("--notebook", type=Path, default=Path("var/lab"), metavar="DIR", help="outcomes, to go on from")
    paper.add_argument("--only", nargs="+", metavar="WORKLOAD", help="these workloads")
    paper.add_argument("--processes", type=int, metavar="N", help="at once (default: one for each core)")
    paper.add_argument("--seed", type=int, default=0, metavar="S")
    paper.set_defaults(measure=_measure)


def _measure(args: argparse.Namespace) -> int:

    from prebled.bench.paper import compare
    from prebled.bench.paper_page import page
    from prebled.bench.paper_setups import SETUPS

    known = list(dict.fromkeys(setup.workload for setup in SETUPS))
    for name in args.only or ():
        if name not in known:
            raise SettingsError(f"workload {name!r} is unknown; known are {', '.join(known)}", param="only")
    if args.seed < 0:
        raise SettingsError(f"--seed is {args.seed}, must not be negative", param="seed")
    if args.processes is not None and args.processes < 1:
        raise SettingsError(f"--processes is {args.processes}, must be at least 1", param="processes")
    setups = [setup for setup in SETUPS if setup.workload in (args.only or known)]
    comparisons = with_crew(args, lambda crew: compare(crew, setups, args.seed))
    if comparisons is None:
        return INTERRUPTED
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(comparisons, args.seed, machine_in_words()), encoding="utf-8")
    if save_json(comparisons, args.json):
        return 0
    write_line(str(args.out))
    return 0
