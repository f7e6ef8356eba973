"""One place for settings: their names, defaults and ranges. `prebled.settings_load` fills them in.

Constructors below `main` receive plain values; nothing else looks anything up. Ranges hold for what is loaded; a
struct built in code is not checked.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from prebled.errors import SettingsError

__all__ = ["CoreSettings", "FabricSettings", "LimitSettings", "Settings", "SettingsError", "SimSettings"]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
CountOrAuto: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
SecondsOrNone: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Factor: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Weight: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]

CHOICES: dict[str, tuple[str, ...]] = {
    "engine": ("sglang", "sim"),
    "launcher": ("local", "external"),
    "log": ("", "json", "console"),
    "log_level": ("debug", "info", "warning", "error"),
    # ours, or one of SGLang's own
    "queue_policy": ("groups", "fcfs", "lpm", "dfs-weight", "hrrn", "shortest-prefill-first", "lof", "random"),
}
"""Settings with few values. The placement policies are the core's to name."""


class CoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[core]`: constants of the global scheduler; times in seconds. The source of each is given beside it."""

    window_s: Seconds = 180.0  # H: Preble section 3.2
    max_blocks: Count = 4_000_000  # bound of the prefix tree
    kept_decisions: Count = 10_000  # how many decisions `explain` remembers
    park_s: SecondsOrNone = 30.0  # how long a continued request may wait for any worker
    profile: str = ""  # what work costs until a worker's steps tell, a name in prebled.core.cost; empty: by the engine
    # `e2`, the policy of prebled.core.e2; values found by simulation, docs/decisions/0006
    e2_base_price: Weight = 2.0  # what a second of recomputation costs those who come later
    e2_backlog_price: Weight = 3.0  # ... and more per second that one waits even on the idlest worker
    e2_sharing: Weight = 0.2  # how much each request in flight that shares the prefix lowers that
    e2_decode: Weight = 0.075  # what a second of prefill costs each sequence that decodes beside it
    e2_waiting: Weight = 0.1  # ... and each that waits to, all of its output still to come
    e2_output: Weight = 0.25  # a second by which those in flight there will slow its own output
    e2_overtaking: Share = 0.7  # of a worker's queue, what a request overtakes that is cached whole
    e2_overtaken: Weight = 1.0  # what a second of its prefill then costs each who waits there
    # `e2-paper`: Preble section 3.2
    paper_load: Weight = 1.0  # of L, M and P in a cost: 1 each in the paper; 0 leaves one out, to see what it is worth
    paper_eviction: Weight = 1.0
    paper_prefill: Weight = 1.0
    paper_rebalance: Weight = 1.5  # Th_bal: the released code's HIGH_LOAD_THRESHOLD; the paper names no value
    paper_rebalance_floor_s: Weight = 9.0  # least load that is too much: a twentieth of H; ours, neither names one
    paper_decode_ratio: Weight = 0.7  # IMBALR: the released code's; the paper names no value
    paper_replicate: Weight = 2.0  # a mean queueing time that grows so many times over H


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: every bound that answers overload."""

    max_waiting: Count = 1024  # requests accepted without a first token yet; past it 429
    retry_after_s: SecondsOrNone = 1.0
    stream_tokens: Count = 4096  # output tokens a reader may be behind before its stream is ended
    max_body_bytes: Count = 32 * 1024 * 1024  # HTTP body and native frame
    max_connections: Count = 4096
    max_runs: Count = 5  # workers that may lose a request before it fails: what kills engines must not kill them all
    default_completion_tokens: Count = 16  # OpenAI's default of /v1/completions


class FabricSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fabric]`: timing between daemon and workers, in seconds."""

    beat_s: Seconds = 0.5  # beats of workers, pulses of the daemon
    lost_after_s: Seconds = 5.0  # a worker silent for so long is lost
    ring_frames: Count = 8192  # frames a worker keeps for replay
    ring_bytes: Count = 64 * 1024 * 1024
    kv_batch_s: SecondsOrNone = 0.05  # changes of a cache wait so long for others, unless a run begins or ends
    replay_after_s: SecondsOrNone = 0.1  # a missing frame is asked for again after so long
    batch_count: Count = 256  # most runs in one Batch
    batch_s: SecondsOrNone = 0.001  # oldest run in a Batch that is not sent yet
    alone_abort_s: Seconds = 5.0  # a worker without a daemon for so long aborts its runs
    alone_exit_s: Seconds = 3600.0  # ... and exits
    restart_first_s: Seconds = 1.0  # back-off of restarts: doubles from here
    restart_most_s: Seconds = 60.0
    start_timeout_s: Seconds = 1800.0  # a model may take this long to load


class SimSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[sim]`: the simulated engine."""

    profile: str = "mistral-7b-a6000"
    speed: Factor = 1.0  # simulated seconds per second
    chunk_tokens: Count = 2048  # prefill budget of a step
    mixed_chunks: bool = True  # a step computes prompts and decodes, the budget shared (--enable-mixed-chunk of SGLang)
    max_running: Count = 256
    kv_tokens: Count = 198_516
    context_tokens: Count = 32_768


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `prebled start` can be told. Addresses: `unix:PATH`, `tcp:HOST:PORT`, HTTP also `HOST:PORT`."""

    model: str = ""
    served_model_name: str = ""
    engine: str = "sglang"
    policy: str = "e2"
    queue_policy: str = "groups"
    measure_s: SecondsOrNone = 1.0  # a starting worker measures what its steps cost for so long at most; 0: not at all
    workers: CountOrAuto = 0  # 0: one per visible GPU, or one where there is none
    tp: Count = 1
    block_tokens: Count = 64
    kv_tokens: CountOrAuto = 0  # 0: what the engine finds room for
    context_tokens: CountOrAuto = 0  # 0: the model's own
    http: tuple[str, ...] = ("127.0.0.1:8000",)
    listen: tuple[str, ...] = ()  # empty: unix:RUNTIME_DIR/prebled.sock
    fabric_address: str = ""  # empty: unix:RUNTIME_DIR/fabric.sock
    launcher: str = "local"
    log: str = ""  # json or console; empty: console on a terminal
    log_level: str = "info"
    runtime_dir: str = ""  # empty: $RUNTIME_DIRECTORY, /run/prebled as root, else $XDG_RUNTIME_DIR/prebled
    drain_timeout_s: SecondsOrNone = 30.0
    core: CoreSettings = CoreSettings()
    limits: LimitSettings = LimitSettings()
    fabric: FabricSettings = FabricSettings()
    sim: SimSettings = SimSettings()
    sglang: dict[str, bool | int | float | str] = {}  # extra server arguments, passed through
