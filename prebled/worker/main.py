"""The worker's process: builds the engine that it is told to, links it to the daemon, and turns signals into parting.

SIGTERM or SIGINT: take no new runs and exit when those at hand have ended; a second one: exit now.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence

import msgspec
import structlog
import uvloop

from prebled.core.types import Epoch
from prebled.errors import SettingsError
from prebled.logs import configure_logging
from prebled.worker.engine import Engine
from prebled.worker.link import Link
from prebled.worker_options import WorkerOptions, check_options, parse_options

log = structlog.get_logger()


def run_worker(options: WorkerOptions) -> int:
    """Be this worker until its end; the exit code (0 as asked, 1 failed, 2 impossible settings). Raises SettingsError
    for options that can be seen to be wrong before the engine loads."""
    check_options(options)
    configure_logging(options.log, options.log_level, worker=options.worker_id)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(options))


def make_engine(options: WorkerOptions) -> Engine:
    """The engine of these options, not yet started. Raises SettingsError."""
    if options.engine == "sim":
        return _make_sim(options)
    # Only here: a worker of another engine needs neither SGLang nor torch.
    from prebled.worker.sglang_engine import SGLangEngine

    return SGLangEngine(
        options.model,
        block_tokens=options.block_tokens,
        kv_tokens=options.kv_tokens,
        context_tokens=options.context_tokens,
        tp=options.tp,
        queue_policy=options.queue_policy,
        device=options.device,
        server_args=options.sglang,
        measure_s=options.measure_s,
    )


def _make_sim(options: WorkerOptions) -> Engine:
    from prebled.worker.sim_engine import SimEngine
    from prebled.worker.sim_vocabulary import read_vocabulary

    vocabulary = read_vocabulary(options.model)
    settings = msgspec.structs.replace(
        options.sim,
        kv_tokens=options.kv_tokens or options.sim.kv_tokens,
        context_tokens=options.context_tokens or options.sim.context_tokens,
    )
    return SimEngine(
        settings,
        options.block_tokens,
        model=options.model,
        vocab_size=vocabulary.size,
        eos_token_ids=vocabulary.eos_token_ids,
        queue_policy=options.queue_policy,
    )


async def _serve(options: WorkerOptions) -> int:
    pid = os.getpid()
    link = Link(
        make_engine(options),
        address=options.fabric_address,
        worker_id=options.worker_id,
        epoch=Epoch(time.time_ns()),
        pid=pid,
        engine_name=options.engine,
        settings=options.fabric,
    )
    _listen_to_signals(link, options.drain_timeout_s)
    log.info("worker started", pid=pid, engine=options.engine, fabric=options.fabric_address)
    ending = await link.run()
    tell = log.error if ending.code else log.info
    tell("worker exits", code=ending.code, reason=ending.reason)
    return ending.code


def _listen_to_signals(link: Link, drain_timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    is_draining = False

    def take(number: signal.Signals) -> None:
        nonlocal is_draining
        log.info("signal", signal=number.name, again=is_draining)
        if is_draining:
            link.stop(f"told by {number.name} to stop now")
        else:
            link.drain(drain_timeout_s)
        is_draining = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, take, number)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the process that `worker_command` describes."""
    parser = argparse.ArgumentParser(prog="python -m prebled.worker.main", allow_abbrev=False)
    parser.add_argument("--options-json", required=True, help="WorkerOptions as JSON")
    arguments = parser.parse_args(argv)
    try:
        return run_worker(parse_options(arguments.options_json))
    except SettingsError as error:
        sys.stderr.write(f"prebled worker: {error.message}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
