"""`prebled bench trace`: what is in a trace, recorded or generated; and a generated one written to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prebled.commands.output import write_json, write_line, write_table
from prebled.errors import SettingsError

if TYPE_CHECKING:
    from prebled.bench.trace_stats import Mean, Spread, TraceStats


def configure(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments."""
    trace = benches.add_parser(
        "trace",
        help="show what is in a trace, or generate one",
        description="Show what is in a trace: how its requests come, how long they are, what they share.",
        allow_abbrev=False,
    )
    trace.add_argument(
        "source",
        metavar="TRACE",
        help="a file, or workload:NAME[+NAME...][?KEY=VALUE&...] for a generated trace: toolbench, embodied, "
        "programming, videoqa, loogle; keys requests, rate, zipf, groups, arrivals (poisson, azure)",
    )
    trace.add_argument("--requests", type=int, metavar="N", help="how many to generate (2000)")
    trace.add_argument("--seed", type=int, default=0, metavar="S")
    trace.add_argument("--block-tokens", type=int, metavar="B", help="to count sharing in (that of the trace)")
    trace.add_argument("--trace-block-tokens", type=int, metavar="B", help="of the file, if nothing says so")
    trace.add_argument("--out", type=Path, metavar="FILE", help="write the whole trace there, JSON lines[.zst]")
    trace.add_argument("--json", action="store_true", help="print the statistics as JSON")
    trace.set_defaults(measure=run)


def run(args: argparse.Namespace) -> int:
    """Load, perhaps write, and print the statistics."""
    from prebled.bench.trace import load_recording, make_trace
    from prebled.bench.trace_stats import measure_trace
    from prebled.bench.trace_write import write_recording

    name, recording = load_recording(
        args.source, requests=args.requests, seed=args.seed, trace_block_tokens=args.trace_block_tokens
    )
    block_tokens = recording.trace_block_tokens if args.block_tokens is None else args.block_tokens
    stats = measure_trace(make_trace(name, recording, block_tokens=block_tokens, seed=args.seed))
    if args.out is not None:
        if args.out.resolve() == Path(args.source).resolve():
            raise SettingsError(f"--out {args.out} is the trace itself")
        write_recording(args.out, recording)
    if args.json:
        write_json(stats)
    else:
        _print(stats)
    return 0


def _print(stats: TraceStats) -> None:
    kind = "closed loop" if stats.is_closed_loop else "open loop"
    write_line(f"{stats.name}: {stats.requests} requests, {kind}, sharing in blocks of {stats.block_tokens} tokens")
    write_line()
    bursts = "" if stats.dispersion is None else f", dispersion in 10 s windows {stats.dispersion:.2f}"
    what = "sessions start" if stats.is_closed_loop else "arrivals"
    write_line(f"{what}  {stats.rate:.3f}/s over {stats.duration_s:.1f} s{bursts}")
    write_line(f"sessions  {stats.sessions}, requests that a next turn goes on from {stats.continued}")
    write_line(
        f"sharing   ideal hit ratio {stats.ideal_hit_ratio:.2%}, {stats.distinct_blocks} distinct blocks, "
        f"{stats.roots} roots"
    )
    write_line()
    lengths: list[tuple[str, Spread]] = [("prompt", stats.prompt_tokens), ("output", stats.output_tokens)]
    write_table(
        ("tokens", "mean", "std", "p50", "p90", "p99", "max"),
        [
            (name, round(of.mean, 1), round(of.std, 1), *map(round, (of.p50, of.p90, of.p99, of.max)))
            for name, of in lengths
        ],
    )
    write_line()
    shares: list[tuple[str, Mean, float]] = [
        ("shared with earlier prompts, %", stats.shared, 100),
        ("key portion of the prompt, %", stats.key_portion, 100),
        ("requests sharing a key portion", stats.requests_per_key, 1),
    ]
    write_table(
        ("of prompts", "mean", "std"),
        [(name, round(of.mean * unit, 1), round(of.std * unit, 1)) for name, of, unit in shares],
    )
