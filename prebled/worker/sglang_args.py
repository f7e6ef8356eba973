"""What SGLang is started with: its server arguments, its environment, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prebled.errors import EngineFailed, SettingsError
from prebled.worker.sglang_kv_output import PUBLISHER
from prebled.worker.sglang_plugin import GROUPS, PLUGINS, QUEUE_POLICY_VARIABLE, WORKER_VARIABLE

DEVICES = ("auto", "cpu", "cuda")
QUEUE_POLICIES = (
    GROUPS,
    *("fcfs", "lpm", "dfs-weight", "hrrn", "lof", "random", "routing-key", "shortest-prefill-first"),  # SGLang 0.5.23
)

# Arguments that the engine's contract rests on: prebled's own settings, or what it cannot drive.
_NOT_TO_BE_SET = frozenset(
    {
        "context_length",
        "device",
        "disaggregation_mode",
        "dp_size",
        "enable_dp_attention",
        "kv_events_config",
        "max_total_tokens",
        "model_path",
        "nnodes",
        "page_size",
        "pp_size",
        "schedule_policy",
        "skip_tokenizer_init",
        "stream_interval",
        "tokenizer_path",
        "tokenizer_worker_num",
        "tp_size",
    }
)


def server_args(
    model: str,
    *,
    block_tokens: int,
    kv_tokens: int,
    context_tokens: int,
    tp: int,
    queue_policy: str,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """SGLang's arguments by name; `more` wins over our defaults. Zero tokens: left to SGLang. Raises SettingsError for
    an unknown queue policy, and if `more` holds an argument that is not to be set."""
    if queue_policy not in QUEUE_POLICIES:
        raise SettingsError(f"queue_policy must be one of {', '.join(QUEUE_POLICIES)}, not {queue_policy!r}")
    refused = _NOT_TO_BE_SET.intersection(more)
    if refused:
        raise SettingsError(f"sglang.{min(refused)} cannot be set: prebled sets it itself, or depends on its default")
    arguments: dict[str, Any] = {
        "model_path": model,
        "page_size": block_tokens,
        "tp_size": tp,
        "schedule_policy": "fcfs" if queue_policy == GROUPS else queue_policy,
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "sleep_on_idle": True,  # an idle scheduler would spin, and several workers may share the cores
        "kv_events_config": json.dumps({"publisher": PUBLISHER}),
        "load_snapshot_publish_interval": 4,  # decode steps; prefill and idleness are reported at once
        "random_seed": random.getrandbits(30),  # the ranks must agree, so it is chosen here
        "log_level": "warning",
    }
    if kv_tokens:
        arguments["max_total_tokens"] = kv_tokens
    if context_tokens:
        arguments["context_length"] = context_tokens
    return arguments | dict(more)


def environment(queue_policy: str, tp: int) -> dict[str, str]:
    """Variables of the scheduler processes, beside the worker's own."""
    defaults = {
        "SGLANG_NUMA_BIND_V2": "0",  # bind from within the process: version 2 wraps SGLang's own launcher
    }
    if tp > 1:  # used on the CPU only, where SGLang would want one NUMA node per rank
        cores = sorted(os.sched_getaffinity(0))
        defaults["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[rank % len(cores)]) for rank in range(tp))
    variables = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if only := os.environ.get("SGLANG_PLUGINS"):  # the user's list of plugins that SGLang may load
        variables["SGLANG_PLUGINS"] = ",".join((only, *PLUGINS))
    return variables | {
        WORKER_VARIABLE: "1",
        QUEUE_POLICY_VARIABLE: queue_policy,
        "SGLANG_USE_PICKLE_IPC": "0",  # msgpack instead: see sglang_wire
        "SGLANG_LOAD_SNAPSHOT_USE_ZMQ": "1",  # its other way is a file in /dev/shm that a killed worker leaves behind
    }


def check_folder(model: str) -> None:
    """Raises EngineFailed if `model` means a folder that is not there. `a/b` may also be a name on the Hugging Face
    hub: it means a folder only if `a` is one."""
    path = Path(model)
    if path.exists():
        return
    if path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2 or _is_in_a_folder(path):
        raise EngineFailed(f"the model folder {model} does not exist")


def _is_in_a_folder(path: Path) -> bool:
    return len(path.parts) == 2 and path.parent.is_dir()
