"""`prebled bench factors`: round robin over `e2` on whole recorded traces, in virtual time; writes a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from prebled.commands.bench_lab import INTERRUPTED, machine_in_words, with_crew
from prebled.commands.numbers import count
from prebled.commands.output import write_line
from prebled.errors import SettingsError


def configure(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments."""
    factors = benches.add_parser(
        "factors", help="round robin over e2 at shares of round robin's capacity, in virtual time", allow_abbrev=False
    )
    factors.add_argument("--traces", type=Path, metavar="DIR", help="recorded traces (default: generated workloads)")
    factors.add_argument("--out", type=Path, default=Path("docs/results/factors.md"), metavar="FILE", help="the page")
    factors.add_argument(
        "--notebook", type=Path, default=Path("var/lab"), metavar="DIR", help="outcomes, to go on from"
    )
    factors.add_argument("--limit", type=count, metavar="N", help="requests of a trace at most (default: all)")
    factors.add_argument("--workers", type=count, default=4, metavar="W")
    factors.add_argument("--seed", type=int, default=0, metavar="S")
    factors.add_argument("--only", nargs="+", metavar="CASE", help="these cases")
    factors.add_argument("--processes", type=count, metavar="N", help="at once (default: one for each core)")
    factors.set_defaults(measure=_measure)


def _measure(args: argparse.Namespace) -> int:
    from prebled.bench.factors import measure, page
    from prebled.bench.lab.cases import cases, recorded

    if args.seed < 0:
        raise SettingsError(f"--seed is {args.seed}, must not be negative", param="seed")
    compared = cases(args.traces, args.only) if args.only else recorded(args.traces)  # what is generated has no whole
    found = with_crew(args, lambda crew: measure(crew, compared, args.workers, args.seed, args.limit))
    if found is None:
        return INTERRUPTED
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(found, args.workers, _command(args), machine_in_words()), encoding="utf-8")
    write_line(str(args.out))
    return 0


def _command(args: argparse.Namespace) -> str:
    """What makes the same page again; of folders no more than their names."""
    words = ["prebled bench factors"]
    words += ["--traces", args.traces.name] if args.traces is not None else []
    words += ["--limit", str(args.limit)] if args.limit is not None else []
    words += ["--workers", str(args.workers), "--seed", str(args.seed)]
    words += ["--only", *args.only] if args.only else []
    return " ".join(words)
