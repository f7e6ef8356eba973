"""What prebled gives to SGLang through its entry points: a CPU platform, the queue policy `groups`, the timing of steps
and the way of KV events to the worker.

SGLang loads both in every process that imports it, prebled's or not; they do something only in the scheduler processes
of a prebled worker, which are told by `WORKER_VARIABLE` and `QUEUE_POLICY_VARIABLE`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prebled.worker.sglang_gate import PageGate

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
    """Entry point of `sglang.srt.plugins`: measure the scheduler's steps, tell what its cache does, and, if this worker
    is to, order its queue by groups and compute no page twice at once."""
    if os.environ.get(WORKER_VARIABLE) != "1":
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from prebled.worker.sglang_steps import METER

    has_groups = os.environ.get(QUEUE_POLICY_VARIABLE) == GROUPS
    scheduler = "sglang.srt.managers.scheduler.Scheduler"
    policy = "sglang.srt.managers.schedule_policy"
    hooks = {
        f"{policy}.SchedulePolicy.calc_priority": METER.around_order(_group_order() if has_groups else None),
        f"{scheduler}.process_batch_result": METER.around_results,
        f"{scheduler}.on_idle": METER.around_idle,
    }
    if has_groups:
        gate = _page_gate()
        hooks[f"{policy}.PrefillAdder.add_one_req"] = gate.around_one
        hooks[f"{policy}.PrefillAdder.add_chunked_req"] = gate.around_chunk
    for target, hook in hooks.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    _publish_kv_events(scheduler)


def _publish_kv_events(scheduler: str) -> None:
    from sglang.srt.disaggregation.kv_events import EventPublisherFactory
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from prebled.worker.sglang_kv_output import OUTPUT, PUBLISHER

    EventPublisherFactory.register_publisher(PUBLISHER, lambda **config: OUTPUT)
    HookRegistry.register(f"{scheduler}.init_kv_events_publisher", OUTPUT.after_init, HookType.AFTER)
    streamer = "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer"
    HookRegistry.register(f"{streamer}.stream_output", OUTPUT.before_outputs, HookType.BEFORE)


def _group_order() -> Callable[..., None]:
    from sglang.srt.mem_cache.common import match_kv_cache

    from prebled.worker.sglang_queue import GroupOrder

    return GroupOrder(match_kv_cache)


def _page_gate() -> PageGate:
    from sglang.srt.managers.schedule_policy import AddReqResult

    from prebled.worker.sglang_gate import PageGate

    return PageGate(AddReqResult.CONTINUE, AddReqResult.OTHER)
