"""What one worker is told when it starts, and the command line that tells it.

Beside `prebled.worker`, not in it: the daemon writes what the worker reads, and neither imports the other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from prebled.addresses import fabric_endpoints
from prebled.core.types import WorkerId
from prebled.errors import SettingsError
from prebled.logs import LogFormat
from prebled.settings import FabricSettings, Settings, SimSettings


class WorkerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One worker. Zeros and empty strings leave the choice to the engine.

    `fabric_address`: `unix:PATH` or `tcp:HOST:PORT` of the daemon. `engine`: `sglang` or `sim`; `sim` reads only the
    vocabulary of `model`, a folder or hub name. `device`: `auto`, or what the engine calls its devices.
    `measure_s`: how long a real engine may be measured when it starts. `sglang`: more arguments for SGLang, by name.
    `drain_timeout_s`: how long runs may go on after SIGTERM.
    """

    worker_id: WorkerId
    fabric_address: str
    engine: str
    model: str = ""
    tp: int = 1
    device: str = "auto"
    block_tokens: int = 64
    kv_tokens: int = 0
    context_tokens: int = 0
    queue_policy: str = "groups"
    measure_s: float = 0.0
    drain_timeout_s: float = 30.0
    fabric: FabricSettings = FabricSettings()
    sim: SimSettings = SimSettings()
    sglang: dict[str, bool | int | float | str] = {}
    log: LogFormat = "json"
    log_level: str = "info"


MOST_ID_BYTES = 200
"""A worker's id becomes part of the identity of a socket, for which ZeroMQ has 255."""


def check_options(options: WorkerOptions) -> None:
    """Raises SettingsError for what no engine or fabric could take."""
    size = len(options.worker_id.encode())
    if not 1 <= size <= MOST_ID_BYTES or options.worker_id.startswith("\0"):
        raise SettingsError(f"worker id {options.worker_id!r}: 1 to {MOST_ID_BYTES} bytes are wanted")
    fabric_endpoints(options.fabric_address)
    if options.engine not in ("sglang", "sim"):
        raise SettingsError(f"engine {options.engine!r}: neither sglang nor sim")
    for name in ("tp", "block_tokens"):
        if getattr(options, name) < 1:
            raise SettingsError(f"{name} {getattr(options, name)}: must be at least 1")


def model_for_workers(model: str) -> str:
    """A model as workers are told it: a folder by its absolute path, which means the same from everywhere; a name as it
    is, for the worker to resolve (what the daemon fetches of it has no weights)."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def worker_options(
    settings: Settings, worker_id: WorkerId, *, model: str, fabric_address: str, log: LogFormat = "json"
) -> WorkerOptions:
    """What these settings mean for one worker. `model` and `fabric_address` are what the settings leave open."""
    return WorkerOptions(
        worker_id=worker_id,
        fabric_address=fabric_address,
        engine=settings.engine,
        model=model,
        tp=settings.tp,
        block_tokens=settings.block_tokens,
        kv_tokens=settings.kv_tokens,
        context_tokens=settings.context_tokens,
        queue_policy=settings.queue_policy,
        measure_s=settings.measure_s,
        drain_timeout_s=settings.drain_timeout_s,
        fabric=settings.fabric,
        sim=settings.sim,
        sglang=settings.sglang,
        log=log,
        log_level=settings.log_level,
    )


def worker_command(options: WorkerOptions) -> list[str]:
    """Arguments of a process that runs this worker with the interpreter that runs us; the same for the same options."""
    return [sys.executable, "-m", "prebled.worker.main", "--options-json", msgspec.json.encode(options).decode()]


def parse_options(text: str) -> WorkerOptions:
    """Read what `worker_command` wrote. Raises SettingsError."""
    try:
        options = msgspec.json.decode(text, type=WorkerOptions)
    except msgspec.DecodeError as error:
        raise SettingsError(f"worker options: {error}") from error
    check_options(options)
    return options
