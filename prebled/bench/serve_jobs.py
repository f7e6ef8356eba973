"""What `prebled bench serve` sends: prompts as token ids, from texts or from a trace, with the times to send them at.

A trace knows which blocks of its prompts are equal, not what they say. Each block gets token ids of its own, made from
its hash, so equal prefixes are equal token ids and nothing else is; what lies beyond the last full block is made from
the request's place in the trace and matches nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from prebled.bench.trace import Trace
from prebled.bench.workloads import toolbench
from prebled.core.blocks import HASH_BYTES
from prebled.errors import SettingsError

FIRST_ID, IDS = 64, 960
"""Made-up prompts use so many token ids from here on: ordinary ones in any vocabulary."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TAIL = 0xD1342543DE82EF95


class Job(msgspec.Struct, frozen=True):
    """One request. `arrival_s`: seconds after the start; None: as soon as may be. Jobs of one `session` (not "") come
    one after another, the next `think_s` after the answer before."""

    tokens: array[int]
    max_tokens: int
    arrival_s: float | None = None
    session: str = ""
    think_s: float = 0.0


def text_jobs(
    model: Path, texts: Path, *, requests: int, lists: int, zipf: float, max_tokens: int, seed: int
) -> list[Job]:
    """Prompts of the tool-use workload, tokenised as the served model does. Raises SettingsError."""
    from tokenizers import Tokenizer

    tokenizer_path = model / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise SettingsError(f"model {str(model)!r}: no tokenizer.json there")
    prompts = toolbench(texts, requests=requests, lists=lists, zipf=zipf, seed=seed)
    encodings = Tokenizer.from_file(str(tokenizer_path)).encode_batch(prompts)
    return [Job(array("I", encoding.ids), max_tokens) for encoding in encodings]


def trace_jobs(trace: Trace, *, most_tokens: int | None = None) -> list[Job]:
    """The requests of a trace, at its times. `most_tokens`: outputs longer than this are cut to it."""
    jobs = []
    for index, request in enumerate(trace.requests):
        tokens = _tokens(request.path, trace.block_tokens, request.prompt_tokens, index)
        output_tokens = max(request.output_tokens, 1)
        jobs.append(
            Job(
                array("I", tokens.tobytes()),
                output_tokens if most_tokens is None else min(output_tokens, most_tokens),
                request.arrival_s,
                request.session if trace.is_closed_loop else "",
                request.think_s,
            )
        )
    return jobs


def sessions(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs that come one after another, in lists; a job without a session is alone in its list."""
    lists: list[list[Job]] = []
    open_lists: dict[str, list[Job]] = {}
    for job in jobs:
        known = open_lists.get(job.session) if job.session else None
        if known is not None:
            known.append(job)
            continue
        lists.append([job])
        if job.session:
            open_lists[job.session] = lists[-1]
    return lists


def _tokens(path: bytes, block_tokens: int, prompt_tokens: int, index: int) -> NDArray[np.uint32]:
    """The made-up ids of one prompt, uint32."""
    hashes = np.frombuffer(path, "<u8")
    blocks = _mixed(hashes[:, None] + np.arange(block_tokens, dtype=np.uint64)[None, :] * _GOLDEN)
    tail_tokens = prompt_tokens - len(path) // HASH_BYTES * block_tokens
    before = int(hashes[-1]) if len(hashes) else 0
    own = np.full(tail_tokens, before ^ (index + 1) * _TAIL % 2**64, np.uint64)
    tail = _mixed(own + np.arange(1, tail_tokens + 1, dtype=np.uint64) * np.uint64(_TAIL))
    ids: NDArray[np.uint32] = (np.concatenate([blocks.ravel(), tail]) % np.uint64(IDS)).astype(np.uint32) + FIRST_ID
    return ids


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers (the finalizer of SplitMix64)."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)
