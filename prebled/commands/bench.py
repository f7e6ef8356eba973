"""`prebled bench`: `serve` drives a running server with a workload, `decide` times the scheduler's decisions. The other
measurements (`trace`, `lab`, `paper`, `factors`, `queue`, `validate`) have a module each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebled.commands import bench_factors, bench_lab, bench_paper, bench_queue, bench_trace, bench_validate
from prebled.commands.numbers import count
from prebled.commands.output import remark, save_json, write_line, write_table
from prebled.errors import SettingsError

if TYPE_CHECKING:
    from prebled.bench.serve_jobs import Job


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    _configure_serve(benches)
    _configure_decide(benches)
    bench_trace.configure(benches)
    bench_lab.configure(benches)
    bench_paper.configure(benches)
    bench_factors.configure(benches)
    bench_queue.configure(benches)
    bench_validate.configure(benches)


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 if a request failed."""
    code: int = args.measure(args)
    return code


def _configure_serve(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = benches.add_parser("serve", help="send requests to a running server", allow_abbrev=False)
    serve.add_argument(
        "--url",
        default="",
        metavar="URL",
        help="http://HOST:PORT of any OpenAI-compatible server, or unix:PATH or tcp:HOST:PORT of a daemon "
        "(default: the user's own, else the system's)",
    )
    what = serve.add_mutually_exclusive_group(required=True)
    what.add_argument("--trace", metavar="FILE", help="a trace as `prebled replay` takes it; prompts are made up")
    what.add_argument("--workload", metavar="NAME", help="a generated trace, as `--trace workload:NAME`")
    what.add_argument("--texts", metavar="FILE", type=Path, help="tool-use prompts from real text, JSON lines[.zst]")
    serve.add_argument("--model", metavar="FOLDER", type=Path, help="the served model, to tokenise --texts with")
    serve.add_argument("--lists", type=count, default=60, metavar="N", help="distinct tool lists of --texts")
    serve.add_argument("--zipf", type=float, default=1.1, metavar="A", help="popularity of the tool lists of --texts")
    serve.add_argument("--requests", "--limit", type=count, metavar="N", help="how many (default: all; --texts: 600)")
    serve.add_argument("--max-tokens", type=count, metavar="N", help="most output tokens of each (--texts: 16)")
    serve.add_argument("--concurrency", type=count, metavar="C", help="most requests at once (--texts: 16)")
    serve.add_argument(
        "--rate", type=float, default=0.0, metavar="X", help="Poisson arrivals a second, for the trace's"
    )
    serve.add_argument("--rate-scale", type=float, default=1.0, metavar="X", help="speed up the trace's own arrivals")
    serve.add_argument("--block-tokens", type=count, default=64, metavar="B", help="block size of the server's cache")
    serve.add_argument("--seed", type=int, default=0, metavar="S")
    serve.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")
    serve.set_defaults(measure=_serve)


def _configure_decide(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    decide = benches.add_parser("decide", help="time the scheduler's decisions, in process", allow_abbrev=False)
    decide.add_argument("--workers", type=count, default=64, metavar="N")
    decide.add_argument("--prompt-tokens", type=count, default=8192, metavar="T", help="length of every prompt")
    decide.add_argument("--block-tokens", type=count, default=64, metavar="B")
    decide.add_argument("--blocks", type=count, default=1_000_000, metavar="K", help="blocks to grow the tree to")
    decide.add_argument("--policy", default="e2", metavar="P", help="placement policy")
    decide.add_argument(
        "--mix",
        choices=("exploit", "explore", "both"),
        default="both",
        help="time prompts that share most, or little, or all",
    )
    decide.add_argument("--decisions", type=count, default=4000, metavar="N", help="how many to time")
    decide.add_argument("--in-flight", type=count, default=2, metavar="N", help="requests in flight for each worker")
    decide.add_argument("--profile", action="store_true", help="also say which part of a decision takes how long")
    decide.add_argument("--seed", type=int, default=0, metavar="S")
    decide.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")
    decide.set_defaults(measure=_decide)


def _decide(args: argparse.Namespace) -> int:
    from msgspec import to_builtins

    from prebled.bench.decide import measure

    report = measure(
        policy=args.policy,
        workers=args.workers,
        prompt_tokens=args.prompt_tokens,
        block_tokens=args.block_tokens,
        blocks=args.blocks,
        seed=args.seed,
        mix=args.mix,
        decisions=args.decisions,
        in_flight=args.in_flight,
        profile=args.profile,
        tell=remark if sys.stderr.isatty() else lambda text: None,
    )
    decide, finish = report.decide_us, report.finish_us
    summary = (
        f"{report.policy}, {report.workers} workers, {report.blocks} blocks: a decision takes {decide.p50} us "
        f"(p99 {decide.p99}), a completion {finish.p50} us; {report.bytes_per_block} bytes a block"
    )
    _write(to_builtins(report), args.json, summary)
    if report.parts and args.json != "-":
        write_table(
            ("PART", "P50 US", "SHARE"),
            [(one.part, f"{one.p50:.2f}", f"{one.share:.1%}") for one in report.parts],
        )
    return 0


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from msgspec.structs import asdict

    from prebled.bench.serve import drive, report
    from prebled.bench.workloads import ideal_share

    jobs = _jobs(args)
    concurrency = args.concurrency or (16 if args.texts else None)
    served, wall_s = asyncio.run(drive(args.url, jobs, concurrency=concurrency, rate=args.rate, seed=args.seed))
    figures = report(served, wall_s)
    ideal = ideal_share([job.tokens.tobytes() for job in jobs], args.block_tokens)
    result = {
        "workload": str(args.texts or args.trace or args.workload),
        **asdict(figures),
        "ideal_hit_ratio": round(ideal.share, 4),
    }
    summary = (
        f"{figures.completed} of {figures.requests} requests in {figures.wall_s} s; "
        f"prompt tokens from cache: {figures.hit_ratio:.1%} (ideal {ideal.share:.1%})"
    )
    _write(result, args.json, summary)
    return 1 if figures.failed else 0


def _jobs(args: argparse.Namespace) -> list[Job]:
    from prebled.bench.serve_jobs import text_jobs, trace_jobs
    from prebled.bench.trace import read_trace

    if args.texts is not None:
        if args.model is None:
            raise SettingsError("--texts needs --model FOLDER to tokenise with", param="model")
        return text_jobs(
            args.model,
            args.texts,
            requests=args.requests or 600,
            lists=args.lists,
            zipf=args.zipf,
            max_tokens=args.max_tokens or 16,
            seed=args.seed,
        )
    trace = read_trace(
        args.trace or f"workload:{args.workload}",
        block_tokens=args.block_tokens,
        limit=args.requests,
        rate_scale=args.rate_scale,
        seed=args.seed,
    )
    return trace_jobs(trace, most_tokens=args.max_tokens)


def _write(result: dict[str, Any], to: str | None, summary: str) -> None:
    if not save_json(result, to):
        write_line(summary)
