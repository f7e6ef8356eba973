"""What the lab replays: traces with the workers that they are for.

With a folder of recorded traces the cases are those files of it that are known by name; without one, the generated
workloads of the paper, so that the lab runs anywhere.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from prebled.bench.trace import Trace, read_trace
from prebled.errors import SettingsError

BLOCK_TOKENS = 64
"""The daemon's own block size, for all."""

CUT = 2000
"""Requests of a case at most, unless the lab runs whole traces."""


class Case(msgspec.Struct, frozen=True):
    """One trace on one kind of worker. `kv_tokens`: of each worker, None for the profile's own. `is_shared`: whether
    its prompts share prefixes at all. `is_held_out`: nothing was tuned on it."""

    name: str
    source: str
    profile: str = "mistral-7b-a6000"
    kv_tokens: int | None = None
    is_shared: bool = True
    is_held_out: bool = False
    session_rate: float = 0.2
    longest_prompt: int | None = None
    longest_think_s: float | None = None

    def trace(self, seed: int, limit: int | None = CUT) -> Trace:
        """The trace at its own rate, cut by the seed. Raises SettingsError."""
        return read_trace(
            self.source,
            block_tokens=BLOCK_TOKENS,
            limit=limit,
            seed=seed,
            session_rate=self.session_rate,
            longest_prompt=self.longest_prompt,
            longest_think_s=self.longest_think_s,
        )


_BIG = {"profile": "llama-3-70b-4xh100", "longest_prompt": 200_000}

_FILES: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("toolbench", "preble_like/toolbench.jsonl.zst", {}),
    ("zipf", "preble_like/toolbench_zipf1.1.jsonl.zst", {}),
    ("embodied", "preble_like/embodied.jsonl.zst", {}),
    ("programming", "preble_like/programming.jsonl.zst", {}),
    ("videoqa", "videoqa_nextqa_val.jsonl.zst", {}),
    ("loogle", "preble_like/loogle.jsonl.zst", {}),
    ("conversation", "mooncake_conversation_first30min.jsonl.zst", _BIG),
    ("synthetic", "mooncake_synthetic.jsonl.zst", _BIG),
    ("agentic", "agentic_fleet_1h.jsonl.zst", _BIG),
    ("azure-code", "azure2023_code.jsonl.zst", {"is_shared": False}),
)

_GENERATED = (
    Case("toolbench", "workload:toolbench"),
    Case("toolbench-zipf", "workload:toolbench?zipf=1.1"),
    Case("embodied", "workload:embodied"),
    Case("programming", "workload:programming"),
    Case("videoqa", "workload:videoqa"),
    Case("loogle", "workload:loogle"),
    Case("mixed-bursts", "workload:toolbench*3+videoqa+programming?arrivals=azure"),
)

MIXED = (
    Case("gen-bursts", "workload:videoqa+toolbench*2?arrivals=azure"),
    Case("gen-mixed", "workload:programming+embodied*3+toolbench"),
    Case("gen-loogle", "workload:loogle?zipf=1.0"),
    Case("gen-programs", "workload:programming*2+loogle?arrivals=azure"),
)
"""What the recorded traces lack: several workloads at once, and bursts."""

HELD_OUT = (
    Case("unseen-toolbench", "workload:toolbench?zipf=1.4&groups=150", is_held_out=True),
    Case("unseen-videos", "workload:videoqa?zipf=0.8", is_held_out=True),
    Case("unseen-bursts", "workload:embodied*2+programming?arrivals=azure", is_held_out=True),
    Case("unseen-mixed", "workload:toolbench*4+loogle+videoqa", is_held_out=True),
)
"""Generated with parameters that no constant was chosen on."""


def recorded(folder: Path | None) -> list[Case]:
    """The traces of a folder, or the generated workloads of the paper. Raises SettingsError."""
    if folder is None:
        return list(_GENERATED)
    found = [
        msgspec.convert({"name": name, "source": str(folder / file), **options}, Case)
        for name, file, options in _FILES
        if (folder / file).is_file()
    ]
    if not found:
        raise SettingsError(f"{folder}: holds none of {', '.join(file for _, file, _ in _FILES)}")
    return found


def cases(folder: Path | None, only: list[str] | None = None) -> list[Case]:
    """Those, and with a folder what is generated besides; `only` these names. Raises SettingsError."""
    found = recorded(folder)
    if folder is not None:
        found += MIXED + HELD_OUT
    if only:
        known = {case.name: case for case in found}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise SettingsError(f"case {unknown[0]!r} is unknown; known are {', '.join(known)}", param="only")
        found = [known[name] for name in only]
    return found
