"""`prebled replay`: a trace through the production schedulers in virtual time, one replay for each policy."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from prebled.commands import BadUsage
from prebled.commands.numbers import count, factor, seconds
from prebled.commands.output import remark, write_json, write_line, write_table
from prebled.errors import PrebledError, SettingsError

if TYPE_CHECKING:
    from prebled.bench.replay_report import ReplayResult

REDRAW_S = 0.2
"""Between two states of the progress bar."""

BAR_WIDTH = 40

ARGUMENTS = {"policy", "profile", "kv_tokens", "block_tokens", "limit", "rate_scale", "seed"}
"""What a SettingsError may name that was asked for here."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.add_argument("trace", metavar="TRACE", help="a file (JSON lines or CSV, also .zst), or workload:NAME")
    parser.add_argument("--policy", action="append", required=True, metavar="P", help="placement policy; once or more")
    parser.add_argument("--workers", type=count, required=True, metavar="N")
    parser.add_argument("--profile", required=True, metavar="NAME", help="model and GPU, or custom:FILE")
    parser.add_argument("--rate-scale", type=factor, default=1.0, metavar="X", help="2: requests come twice as fast")
    parser.add_argument("--kv-tokens", type=count, metavar="T", help="KV cache of a worker (default: the profile's)")
    parser.add_argument("--block-tokens", type=count, metavar="B", help="KV block (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="for what the trace leaves to chance")
    parser.add_argument("--limit", type=count, metavar="R", help="at most so many requests of the trace")
    parser.add_argument(
        "--kv-delay", type=seconds, metavar="S", help="until a cache's changes are known (default: 0.05)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON; - is stdout")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the distributions of TTFT and E2E")


def run(args: argparse.Namespace) -> int:
    """Replay and report."""
    try:
        return _run(args)
    except SettingsError as error:
        if error.param in ARGUMENTS:
            raise BadUsage(error.message) from None
        raise


def _run(args: argparse.Namespace) -> int:
    from prebled.bench.replay import ReplaySettings, replay
    from prebled.bench.replay_profiles import find_profile
    from prebled.bench.trace import read_trace
    from prebled.collector import settle
    from prebled.core.policies import make_policy

    settings = ReplaySettings() if args.kv_delay is None else ReplaySettings(kv_delay_s=args.kv_delay)
    profile = find_profile(args.profile)
    for policy in args.policy:
        make_policy(policy, settings.core)
    if args.plot is not None:
        from prebled.bench.replay_plot import check_matplotlib

        check_matplotlib()
    trace = read_trace(args.trace, block_tokens=args.block_tokens, limit=args.limit, seed=args.seed)
    settle()  # as a daemon does, so that decisions take here what they take there
    results: list[ReplayResult] = []
    with _Bar(len(trace.requests) * len(args.policy)) as bar:
        for policy in args.policy:
            result = replay(
                trace,
                policy,
                workers=args.workers,
                profile=profile,
                kv_tokens=args.kv_tokens,
                rate_scale=args.rate_scale,
                settings=settings,
                progress=partial(bar.show, policy, len(results) * len(trace.requests)),
            )
            results.append(result)
    for result in results:
        for code, failed in result.failures.items():
            remark(f"{result.report.policy}: {failed} of {result.report.requests} requests were refused: {code}")
    _write(results, args.json)
    if args.plot is not None:
        from prebled.bench.replay_plot import plot

        _write_whole(args.plot, plot(results))
    return 0


class _Bar:
    """A progress bar on stderr, if that is a terminal. It leaves no trace."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._is_shown = sys.stderr.isatty()
        self._drawn_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def show(self, label: str, before: int, ended: int) -> None:
        """So many have ended, after so many in replays before."""
        now = time.monotonic()
        if self._is_shown and now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            filled = (before + ended) * BAR_WIDTH // self._total
            sys.stderr.write(f"\r[{'#' * filled:<{BAR_WIDTH}}] {before + ended}/{self._total} {label} ")
            sys.stderr.flush()


def _write(results: Sequence[ReplayResult], to: str | None) -> None:
    reports = [result.report for result in results]
    if to == "-":
        write_json({"results": reports})
        return
    if to is not None:
        _write_whole(Path(to), msgspec.json.format(msgspec.json.encode({"results": reports}), indent=2) + b"\n")
    rows = [
        (
            report.policy,
            report.completed,
            *(round(figure, 3) for of in (report.ttft_s, report.e2e_s) for figure in (of.mean, of.p50, of.p99)),
            round(report.tpot_s.mean, 4),
            round(report.hit_ratio, 3),
            round(report.uncached_max_over_mean, 3),
        )
        for report in reports
    ]
    header = ("policy", "completed", "ttft mean", "p50", "p99", "e2e mean", "p50", "p99", "tpot mean", "hits", "skew")
    write_table(header, rows)
    first = reports[0]
    wall_s = sum(report.wall_seconds for report in reports)
    write_line(f"{first.trace}: {first.requests} requests, {first.workers} workers; {wall_s:.1f} s to replay")


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise PrebledError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
