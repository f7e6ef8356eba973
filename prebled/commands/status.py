"""`prebled status`: the daemon and its workers, for people or as JSON."""

from __future__ import annotations

import argparse

from prebled.client import Client
from prebled.commands.client_options import add_connect
from prebled.commands.output import write_json, write_line, write_table
from prebled.messages import DaemonStatus, WorkerStatus

_BAR_WIDTH = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    add_connect(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    with Client(args.connect or "") as client:
        status = client.status()
    if args.json:
        write_json(status)
    else:
        _write_status(status)
    return 0


def _write_status(status: DaemonStatus) -> None:
    state = "draining" if status.draining else "ready" if status.ready else "not ready"
    write_line(
        f"prebled {status.version}: {state}, up {_span(status.uptime_s)}, pid {status.pid}, "
        f"model {status.model}, policy {status.policy}"
    )
    write_line(f"requests: {status.waiting} waiting, {status.running} running")
    for kind, addresses in (("http", status.http), ("native", status.listen)):
        if addresses:
            write_line(f"{kind}: {' '.join(addresses)}")
    if not status.workers:
        write_line("no workers")
        return
    write_line()
    header = ("WORKER", "STATE", "ENGINE", "DEVICE", "PID", "RESTARTS", "QUEUED", "RUNNING", "KV CACHE", "")
    write_table(header, [_row(worker) for worker in status.workers])


def _row(worker: WorkerStatus) -> tuple[object, ...]:
    return (
        worker.id,
        worker.state,
        worker.engine,
        worker.device,
        worker.pid,
        worker.restarts,
        worker.queued,
        worker.running,
        _kv_bar(worker.kv_used_tokens, worker.kv_total_tokens),
        worker.detail,
    )


def _kv_bar(used_tokens: int, total_tokens: int) -> str:
    if total_tokens <= 0:
        return "-"
    share = min(max(used_tokens / total_tokens, 0.0), 1.0)
    return f"[{'#' * round(share * _BAR_WIDTH):.<{_BAR_WIDTH}}] {share:4.0%} of {total_tokens} tokens"


def _span(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = [(days, "d"), (hour, "h"), (minute, "m"), (second, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number}{unit}" for number, unit in parts[:2])
