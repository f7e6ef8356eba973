"""`prebled bench`: `serve` drives a running daemon with a workload, `decide` times the scheduler's decisions."""

from __future__ import annotations

import argparse
import sys
from array import array
from pathlib import Path
from typing import Any

from prebled.commands.client_options import add_connect
from prebled.commands.output import remark, write_json, write_line
from prebled.errors import SettingsError


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    _configure_serve(benches)
    _configure_decide(benches)


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 if a request failed."""
    code: int = args.measure(args)
    return code


def _configure_serve(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = benches.add_parser("serve", help="send requests to a running daemon", allow_abbrev=False)
    add_connect(serve)
    serve.add_argument("--model", required=True, metavar="FOLDER", type=Path, help="the served model, to tokenise with")
    serve.add_argument("--workload", choices=["toolbench"], default="toolbench", help="what to send")
    serve.add_argument(
        "--file", required=True, metavar="FILE", type=Path, help="texts of the workload, JSON lines[.zst]"
    )
    serve.add_argument("--requests", type=_count, default=600, metavar="N")
    serve.add_argument("--lists", type=_count, default=60, metavar="N", help="distinct tool lists")
    serve.add_argument("--zipf", type=float, default=1.1, metavar="A", help="popularity of the tool lists")
    serve.add_argument("--max-tokens", type=_count, default=16, metavar="N", help="output tokens of each request")
    serve.add_argument("--concurrency", type=_count, default=16, metavar="C", help="most requests at once")
    serve.add_argument("--rate", type=float, default=0.0, metavar="X", help="arrivals a second (0: as fast as may be)")
    serve.add_argument("--block-tokens", type=_count, default=64, metavar="B", help="for the ideal share")
    serve.add_argument("--seed", type=int, default=0, metavar="S")
    serve.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")
    serve.set_defaults(measure=_serve)


def _configure_decide(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    decide = benches.add_parser("decide", help="time the scheduler's decisions, in process", allow_abbrev=False)
    decide.add_argument("--workers", type=_count, default=64, metavar="N")
    decide.add_argument("--prompt-tokens", type=_count, default=8192, metavar="T", help="length of every prompt")
    decide.add_argument("--block-tokens", type=_count, default=64, metavar="B")
    decide.add_argument("--blocks", type=_count, default=1_000_000, metavar="K", help="blocks to grow the tree to")
    decide.add_argument("--policy", default="e2", metavar="P", help="placement policy")
    decide.add_argument(
        "--mix",
        choices=("exploit", "explore", "both"),
        default="both",
        help="time prompts that share most, or little, or all",
    )
    decide.add_argument("--decisions", type=_count, default=4000, metavar="N", help="how many to time")
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
        tell=remark if sys.stderr.isatty() else lambda text: None,
    )
    decide, finish = report.decide_us, report.finish_us
    summary = (
        f"{report.policy}, {report.workers} workers, {report.blocks} blocks: a decision takes {decide.p50} us "
        f"(p99 {decide.p99}), a completion {finish.p50} us; {report.bytes_per_block} bytes a block"
    )
    _write(to_builtins(report), args.json, summary)
    return 0


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from msgspec.structs import asdict
    from tokenizers import Tokenizer

    from prebled.bench.serve import drive
    from prebled.bench.workloads import ideal_share, toolbench

    tokenizer_path = args.model / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise SettingsError(f"model {str(args.model)!r}: no tokenizer.json there")
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    texts = toolbench(args.file, requests=args.requests, lists=args.lists, zipf=args.zipf, seed=args.seed)
    prompts = [array("I", encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    report = asyncio.run(
        drive(
            args.connect or "",
            prompts,
            max_tokens=args.max_tokens,
            concurrency=args.concurrency,
            rate=args.rate,
            seed=args.seed,
        )
    )
    ideal = ideal_share([prompt.tobytes() for prompt in prompts], args.block_tokens)
    result = {"workload": args.workload, **asdict(report), "ideal_hit_ratio": round(ideal.share, 4)}
    summary = (
        f"{result['completed']} of {result['requests']} requests in {result['wall_s']} s; "
        f"prompt tokens from cache: {result['hit_ratio']:.1%} (ideal {result['ideal_hit_ratio']:.1%})"
    )
    _write(result, args.json, summary)
    return 1 if report.failed else 0


def _write(result: dict[str, Any], to: str | None, summary: str) -> None:
    if to == "-":
        write_json(result)
    elif to:
        import msgspec

        Path(to).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if to != "-":
        write_line(summary)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number
