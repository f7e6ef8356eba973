"""Which GPUs there are and which worker gets which, without loading anything of CUDA: that takes seconds and memory."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from prebled.errors import SettingsError

_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
_LIST_TIMEOUT_S = 20.0
_GPU_LINE = re.compile(r"GPU (\d+): ")


def visible_gpus(env: Mapping[str, str], driver_folder: Path = _DRIVER_FOLDER) -> tuple[str, ...]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them: those it names, else all that the driver has, else all that
    `nvidia-smi` lists. May take as long as `nvidia-smi` does where the first two do not tell."""
    named = env.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return _until_invalid(named.split(","))
    if driver_folder.is_dir():
        return tuple(str(index) for index in range(sum(1 for _ in driver_folder.iterdir())))
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_LIST_TIMEOUT_S, env=dict(env), check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(_GPU_LINE.findall(listing.stdout)) if listing.returncode == 0 else ()


def plan_workers(workers: int, tp: int, gpus: Sequence[str]) -> tuple[str, ...]:
    """CUDA_VISIBLE_DEVICES of each worker: `tp` GPUs each, in order. `workers` 0: as many as there is room for, at
    least one. Without any GPU every worker gets "". Raises SettingsError if there are too few."""
    if tp < 1:
        raise SettingsError(f"tp {tp}: at least 1", param="tp")
    if workers < 0:
        raise SettingsError(f"workers {workers}: at least 0", param="workers")
    count = workers or max(len(gpus) // tp, 1)
    if not gpus:
        return ("",) * count
    if count * tp > len(gpus):
        raise SettingsError(
            f"workers {count} x tp {tp} want {count * tp} GPUs, visible are {len(gpus)}", param="workers"
        )
    return tuple(",".join(gpus[n * tp : (n + 1) * tp]) for n in range(count))


def _until_invalid(names: Sequence[str]) -> tuple[str, ...]:
    """CUDA takes the names up to the first that is none, such as -1 (CUDA C++ programming guide, environment)."""
    valid = []
    for name in names:
        name = name.strip()
        if not name or name.startswith("-"):
            break
        valid.append(name)
    return tuple(valid)
