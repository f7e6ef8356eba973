"""`prebled bench queue`: what ordering a worker's queue costs each step of SGLang, whom it lets wait, and how often a
prefix is computed that many wait for."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebled.commands import BadUsage
from prebled.commands.bench_model import model_or_tiny
from prebled.commands.numbers import count
from prebled.commands.output import remark, save_json, write_table

if TYPE_CHECKING:
    from prebled.bench.queue_burst import Burst
    from prebled.bench.queue_cost import OrderCost
    from prebled.bench.queue_starvation import Starvation
    from prebled.messages import Capacity
    from prebled.worker.engine import Engine


def configure(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments."""
    queue = benches.add_parser(
        "queue",
        help="time the ordering of a worker's queue inside SGLang, or show whom it lets wait",
        description="Start SGLang once for each policy and time what ordering its queue costs; or, with --starvation, "
        "put long cold prompts into a stream of short cached ones and see when each is served; or, with --burst, "
        "submit cold prompts with the same beginnings at once and see how much is computed.",
        allow_abbrev=False,
    )
    other = queue.add_mutually_exclusive_group()
    other.add_argument("--starvation", action="store_true", help="the second experiment instead of the first")
    other.add_argument("--burst", action="store_true", help="the third one")
    queue.add_argument("--model", type=Path, metavar="FOLDER", help="a model (default: a tiny one, made for the bench)")
    queue.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    queue.add_argument("--policies", default="fcfs,groups,lpm", metavar="P,P", help="queue policies (fcfs,groups,lpm)")
    queue.add_argument("--waiting", type=count, metavar="N", help="requests in the queue (256; --starvation: 32)")
    queue.add_argument(
        "--running", type=count, metavar="N", help="most that run at once (16; --starvation: 2; --burst: 64)"
    )
    queue.add_argument("--steps", type=count, default=1000, metavar="N", help="how many to time")
    queue.add_argument(
        "--prompt-tokens", type=count, default=600, metavar="T", help="of each timed prompt; --burst: shared"
    )
    queue.add_argument("--output-tokens", type=count, default=16, metavar="T", help="of each timed run, on average")
    queue.add_argument("--shorts", type=count, default=300, metavar="N", help="--starvation: short prompts in all")
    queue.add_argument("--longs", type=count, default=3, metavar="N", help="--starvation: long prompts")
    queue.add_argument(
        "--ahead", type=int, default=2, metavar="N", help="--starvation: short ones before the long ones"
    )
    queue.add_argument("--families", type=count, default=1, metavar="N", help="--burst: different beginnings")
    queue.add_argument("--copies", type=count, default=16, metavar="N", help="--burst: prompts with each beginning")
    queue.add_argument("--kv-tokens", type=count, default=32768, metavar="T", help="size of the KV cache")
    queue.add_argument("--seed", type=int, default=0, metavar="S")
    queue.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")
    queue.set_defaults(measure=run)


def run(args: argparse.Namespace) -> int:
    """Measure one policy after the other, and report."""
    from prebled.worker.sglang_args import QUEUE_POLICIES

    policies = args.policies.split(",")
    for policy in policies:
        if policy not in QUEUE_POLICIES:
            raise BadUsage(f"--policies {policy!r}: must be of {', '.join(QUEUE_POLICIES)}")
    waiting = args.waiting or (32 if args.starvation else 256)
    if args.starvation and not 0 <= args.ahead <= waiting <= args.shorts:
        raise BadUsage(f"--ahead {args.ahead}, --waiting {waiting}, --shorts {args.shorts}: must not get smaller")
    running = args.running or (2 if args.starvation else 64 if args.burst else 16)
    measure: Any = _starve if args.starvation else _burst if args.burst else _cost
    with model_or_tiny(args.model) as model:
        reports = [asyncio.run(measure(args, policy, model, waiting, running)) for policy in policies]
    if save_json(reports, args.json):
        return 0
    show: Any = _print_starvation if args.starvation else _print_bursts if args.burst else _print_costs
    show(reports)
    return 0


async def _cost(args: argparse.Namespace, policy: str, model: Path, waiting: int, running: int) -> OrderCost:
    from prebled.bench.queue_cost import measure_cost

    async with _engine(args, policy, model, running) as (engine, capacity):
        return await measure_cost(
            engine,
            capacity,
            policy=policy,
            waiting=waiting,
            steps=args.steps,
            prompt_tokens=args.prompt_tokens,
            output_tokens=args.output_tokens,
            seed=args.seed,
        )


async def _starve(args: argparse.Namespace, policy: str, model: Path, waiting: int, running: int) -> Starvation:
    from prebled.bench.queue_starvation import starve

    async with _engine(args, policy, model, running) as (engine, capacity):
        return await starve(
            engine,
            capacity,
            policy=policy,
            shorts=args.shorts,
            waiting=waiting,
            ahead=args.ahead,
            longs=args.longs,
            seed=args.seed,
        )


async def _burst(args: argparse.Namespace, policy: str, model: Path, waiting: int, running: int) -> Burst:
    from prebled.bench.queue_burst import burst

    async with _engine(args, policy, model, running) as (engine, capacity):
        return await burst(
            engine,
            capacity,
            policy=policy,
            families=args.families,
            copies=args.copies,
            prefix_tokens=args.prompt_tokens,
            seed=args.seed,
        )


@asynccontextmanager
async def _engine(
    args: argparse.Namespace, policy: str, model: Path, running: int
) -> AsyncIterator[tuple[Engine, Capacity]]:
    """SGLang with this policy, started."""
    from prebled.worker.sglang_engine import SGLangEngine

    engine = SGLangEngine(
        str(model),
        kv_tokens=args.kv_tokens,
        device=args.device,
        queue_policy=policy,
        server_args={"max_running_requests": running},
    )
    try:
        yield engine, await engine.start(lambda text: remark(f"{policy}: {text}"))
    finally:
        await engine.stop()


def _print_costs(costs: list[OrderCost]) -> None:
    header = ("policy", "waiting", "steps", "step ms", "orders", "us/order", "p50", "p99", "us/step", "% of step")
    rows = [
        (
            *(cost.policy, cost.waiting, cost.steps, cost.step_ms, cost.orders),
            *(cost.order_us, cost.order_p50_us, cost.order_p99_us, cost.order_us_per_step, round(100 * cost.share, 2)),
        )
        for cost in costs
    ]
    write_table(header, rows)


def _print_starvation(starvations: list[Starvation]) -> None:
    header = ("policy", "long", "shorts before", "of them younger", "of", "bound", "TTFT s", "shorts' mean TTFT s")
    rows = [
        (one.policy, number + 1, before, younger, one.shorts, bound, ttft_s, one.short_ttft_s)
        for one in starvations
        for number, (before, younger, bound, ttft_s) in enumerate(
            zip(one.shorts_before, one.overtaken_by, one.bound, one.long_ttft_s, strict=True)
        )
    ]
    write_table(header, rows)


def _print_bursts(bursts: list[Burst]) -> None:
    header = ("policy", "prompts", "tokens", "prefilled", "at least", "mean TTFT s", "last TTFT s")
    rows = [
        (
            *(one.policy, one.prompts, one.prompt_tokens, one.prefilled_tokens, one.least_tokens),
            one.ttft_s,
            one.last_ttft_s,
        )
        for one in bursts
    ]
    write_table(header, rows)
