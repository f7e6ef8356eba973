"""How the daemon starts a worker of its own: the command line, and an environment that is the worker's.

What is meant for the daemon alone (systemd's notification socket) is taken out, the worker's GPUs are put in. torch's
thread pools are kept from fighting over the cores unless the user chose otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prebled.core.types import WorkerId
from prebled.daemon.notify import NOTIFY_VARIABLES
from prebled.settings import Settings
from prebled.worker_options import WorkerOptions, worker_command, worker_options


def local_worker(
    settings: Settings, worker_id: WorkerId, model: str, fabric_address: str, gpus: str, env: Mapping[str, str]
) -> tuple[Sequence[str], Mapping[str, str]]:
    """Arguments and the whole environment. `gpus`: CUDA_VISIBLE_DEVICES, "" where there are none."""
    options: WorkerOptions = worker_options(settings, worker_id, model=model, fabric_address=fabric_address)
    kept = {name: value for name, value in env.items() if name not in NOTIFY_VARIABLES}
    kept["PYTHONUNBUFFERED"] = "1"  # its output is a file, and is to be seen as it comes
    if gpus:
        kept["CUDA_VISIBLE_DEVICES"] = gpus
    return worker_command(options), kept
