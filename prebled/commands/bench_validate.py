"""`prebled bench validate`: the simulator against real SGLang workers on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prebled.commands.bench_model import model_or_tiny
from prebled.commands.numbers import count, factor
from prebled.commands.output import remark, save_json, write_line, write_table

if TYPE_CHECKING:
    from prebled.bench.validate import Validation


def configure(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments."""
    validate = benches.add_parser(
        "validate",
        help="hold the simulator against real SGLang workers",
        description="Send one list of requests through real SGLang workers and through the simulator, with costs "
        "fitted on this machine, and compare medians of TTFT and E2E and each request's cached tokens. Takes minutes, "
        "and a machine that does nothing else, with a core for each worker and one more.",
        allow_abbrev=False,
    )
    validate.add_argument("--model", type=Path, metavar="FOLDER", help="a model (default: a tiny one, made for this)")
    validate.add_argument("--policies", default="e2,round-robin", metavar="P,P", help="placement policies")
    validate.add_argument("--workers", type=count, default=2, metavar="N")
    validate.add_argument("--requests", type=count, default=120, metavar="N")
    validate.add_argument(
        "--busy", type=factor, default=0.4, metavar="SHARE", help="of their time, that workers compute"
    )
    validate.add_argument("--rounds", type=count, default=3, metavar="N", help="for each policy")
    validate.add_argument("--seed", type=int, default=0, metavar="S")
    validate.add_argument("--json", metavar="FILE", help="write the result as JSON; - is stdout")
    validate.set_defaults(measure=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out and report; 1 if the simulator is too far off."""
    import uvloop

    from prebled.bench.validate import Plan, validate

    plan = Plan(
        policies=tuple(args.policies.split(",")),
        workers=args.workers,
        requests=args.requests,
        busy=args.busy,
        rounds=args.rounds,
        all_rounds=True,
        seed=args.seed,
    )
    with model_or_tiny(args.model) as model:
        validation = uvloop.run(validate(model, plan, remark))
    _write(validation, args.json)
    return 0 if validation.is_valid else 1


def _write(validation: Validation, to: str | None) -> None:
    if save_json(validation, to):
        return
    header = (
        "policy",
        "rate",
        "busy",
        "others",
        "ttft ms",
        "simulated",
        "e2e ms",
        "simulated",
        "cached",
        "equal",
        "of",
    )
    rows = [
        (
            *(one.policy, one.rate, one.busy, one.others_cores),
            *(round(one.real.ttft_s * 1e3, 2), f"{one.ttft_error:+.1%}"),
            *(round(one.real.e2e_s * 1e3, 2), f"{one.e2e_error:+.1%}"),
            *(one.cached.real, one.cached.equal, one.cached.requests),
        )
        for one in validation.rounds
    ]
    write_table(header, rows)
    for one in validation.together:
        errors = f"TTFT {one.ttft_error:+.1%}, E2E {one.e2e_error:+.1%}"
        write_line(f"{one.policy}, {one.rounds} rounds together, simulated: {errors}")
    write_line("within 15 %, cached tokens equal" if validation.is_valid else "not valid")
