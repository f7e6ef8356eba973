"""Workloads for driving a running daemon: lists of prompts with shared prefixes, seeded and repeatable.

`toolbench` rebuilds Preble's tool-use case (section 2, Table 1) from real text: a system text, one of N real tool
lists chosen by Zipf popularity, and a user's query. Input is JSON lines with `query` and `tools`, plain or zstd.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from prebled.bench.trace_lines import Lines
from prebled.core.blocks import block_hashes, cacheable_blocks, namespace_seed
from prebled.errors import SettingsError

SYSTEM_TEXT = (
    "You are a helpful assistant that answers by calling tools. Read the list of tools below, decide which of them "
    "answer the user's query, call them one at a time with JSON arguments, and give the final answer through Finish.\n"
)


def toolbench(path: Path, *, requests: int, lists: int, zipf: float, seed: int) -> list[str]:
    """`requests` prompts over the first `lists` distinct tool lists of the file, popularity by Zipf(`zipf`)."""
    rows: list[dict[str, Any]] = []
    texts = Lines(path)
    for number, line in enumerate(texts.lines):
        try:
            row = json.loads(line)
            row["tools"], row["query"]
        except (ValueError, KeyError, TypeError) as error:
            texts.complain(number, f"not an object with query and tools ({error})")
        rows.append(row)
    tools = list(dict.fromkeys(json.dumps(row["tools"], ensure_ascii=False) for row in rows))[:lists]
    if len(tools) < lists:
        raise SettingsError(f"{path} has {len(tools)} distinct tool lists, {lists} were asked for")
    chance = random.Random(seed)
    chance.shuffle(tools)
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(lists)))
    chosen = chance.choices(tools, cum_weights=weights, k=requests)
    return [f"{SYSTEM_TEXT}Tools: {text}\nQuery: {chance.choice(rows)['query']}\nAnswer:" for text in chosen]


class IdealShare(msgspec.Struct, frozen=True):
    """What one infinite cache would have reused of prompts that come one after another."""

    prompt_tokens: int
    cached_tokens: int

    @property
    def share(self) -> float:
        """Cached share of all prompt tokens, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def ideal_share(prompts: Sequence[bytes], block_tokens: int) -> IdealShare:
    """The upper bound of any placement: every full block seen before is a hit, the last token never is. `prompts` are
    uint32 LE ids in order of arrival."""
    seed = namespace_seed("", "", "")
    seen: set[int] = set()
    cached = 0
    for prompt in prompts:
        hashes = block_hashes(prompt, block_tokens, seed)
        usable = hashes[: cacheable_blocks(len(prompt) // 4, block_tokens)]
        matched = next((i for i, block in enumerate(usable) if block not in seen), len(usable))
        cached += matched * block_tokens
        seen.update(hashes)
    return IdealShare(sum(len(prompt) // 4 for prompt in prompts), cached)
