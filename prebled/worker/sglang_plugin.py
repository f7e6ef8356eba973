"""What prebled gives to SGLang through its entry points: a CPU platform and the queue policy `groups`.

SGLang loads both in every process that imports it, prebled's or not; they do something only in the scheduler processes
of a prebled worker, which are told by `WORKER_VARIABLE` and `QUEUE_POLICY_VARIABLE`.
"""

from __future__ import annotations

import os

WORKER_VARIABLE = "PREBLED_WORKER"
"""Set to 1 in the environment of a worker's scheduler processes."""

QUEUE_POLICY_VARIABLE = "PREBLED_QUEUE_POLICY"
"""The worker's queue policy, in the same environment."""

GROUPS = "groups"
"""Preble's priority groups (section 3.3), ours; all other queue policies are SGLang's."""

PLUGINS = ("prebled_cpu", "prebled_queue")
"""The names of the entry points below in pyproject.toml."""


def activate_platform() -> str | None:
    """Entry point of `sglang.srt.platforms`: the name of our CPU platform, or None to leave the choice to SGLang, as
    it must be wherever there is an accelerator."""
    if os.environ.get(WORKER_VARIABLE) != "1":
        return None
    import torch

    return None if torch.accelerator.is_available() else "prebled.worker.sglang_platform.CpuPlatform"


def register() -> None:
    """Entry point of `sglang.srt.plugins`: order the queue by groups, if this worker is to."""
    if os.environ.get(WORKER_VARIABLE) != "1" or os.environ.get(QUEUE_POLICY_VARIABLE) != GROUPS:
        return
    from sglang.srt.mem_cache.common import match_kv_cache
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from prebled.worker.sglang_queue import GroupOrder

    target = "sglang.srt.managers.schedule_policy.SchedulePolicy.calc_priority"
    HookRegistry.register(target, GroupOrder(match_kv_cache), HookType.AROUND)
