"""Replays a trace through the production schedulers in virtual time.

    trace = read_trace("toolbench.jsonl.zst", block_tokens=64)
    result = replay(trace, "e2", workers=8, profile="mistral-7b-a6000", rate_scale=3.0)
    print(result.report.ttft_s.p99, result.report.hit_ratio)

The global scheduler hears what a daemon's would, in the same order: arrivals with the hashes of their blocks, first
tokens, every 16th token, ends, beats, and, some time after they came about, the changes of each worker's cache. Each
worker is the batch of the simulated engine with the production local scheduler. What takes time is a worker's steps
and the way of its cache reports; all else happens in no time.

Nothing here rolls dice or reads a clock, but to time decisions and the whole: the same trace and settings give the
same result on every machine. A request may make exactly as many tokens as its recording says, and the engine knows
that (as with `ignore_eos`, which load generators set), unless the settings say otherwise.

Importing this module does nothing else, and a `ReplayResult` can be pickled: replays can run in many processes.
"""

from __future__ import annotations

from time import perf_counter

from prebled.bench.replay_limits import BeyondLimits, Limits
from prebled.bench.replay_loop import Progress, Replay, ReplaySettings
from prebled.bench.replay_profiles import Profile, find_profile
from prebled.bench.replay_report import ReplayResult
from prebled.bench.trace import Trace
from prebled.errors import SettingsError

__all__ = [
    "BeyondLimits",
    "Limits",
    "Profile",
    "Progress",
    "ReplayResult",
    "ReplaySettings",
    "find_profile",
    "replay",
]


def replay(
    trace: Trace,
    policy: str,
    *,
    workers: int,
    profile: str | Profile,
    kv_tokens: int | None = None,
    rate_scale: float = 1.0,
    settings: ReplaySettings | None = None,
    progress: Progress | None = None,
) -> ReplayResult:
    """Replay the whole trace on so many equal workers.

    `kv_tokens`: of each worker (None: the profile's). `rate_scale` 2.0: requests, or sessions in a closed loop, come
    twice as fast. Raises SettingsError that names the value: an unknown policy or profile, numbers out of range. Raises
    BeyondLimits, and has no result, where the settings have limits and the load turns out to be beyond them.
    """
    if isinstance(profile, str):
        profile = find_profile(profile)
    tokens = profile.kv_tokens if kv_tokens is None else kv_tokens
    if workers < 1:
        raise SettingsError(f"workers is {workers}, must be at least 1", param="workers")
    if not 0 < rate_scale < float("inf"):
        raise SettingsError(f"rate_scale is {rate_scale}, must be above 0", param="rate_scale")
    if tokens < 2 * trace.block_tokens:
        message = f"kv_tokens is {tokens}: less than two blocks of {trace.block_tokens}"
        raise SettingsError(message, param="kv_tokens")
    settings = settings or ReplaySettings()
    if settings.queue_policy not in ("groups", "fcfs"):
        message = f"queue_policy {settings.queue_policy!r}: the simulated engine knows groups and fcfs"
        raise SettingsError(message, param="queue_policy")
    started = perf_counter()
    run = Replay(trace, policy, workers, profile, tokens, rate_scale, settings, progress)
    run.run()
    return run.result(round(perf_counter() - started, 3))
