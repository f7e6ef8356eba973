"""Workloads of the load generator: from texts to prompts, and what an ideal cache would reuse of them."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from prebled.bench.workloads import ideal_share, toolbench
from prebled.errors import SettingsError


def write_texts(path: Path, lists: int) -> Path:
    rows = [{"query": f"query {i}", "tools": [{"name": f"tool {i % lists}"}]} for i in range(3 * lists)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_share_tool_lists_by_zipf_and_repeat_for_a_seed(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 8)
    prompts = toolbench(path, requests=4000, lists=8, zipf=1.1, seed=3)
    assert prompts == toolbench(path, requests=4000, lists=8, zipf=1.1, seed=3)
    assert prompts != toolbench(path, requests=4000, lists=8, zipf=1.1, seed=4)
    counts = [count for _, count in Counter(p.split("\nQuery")[0] for p in prompts).most_common()]
    assert len(counts) == 8
    assert counts[0] / counts[1] == pytest.approx(2**1.1, rel=0.15)


def test_packed_texts_are_the_plain_ones(tmp_path: Path) -> None:
    plain = write_texts(tmp_path / "texts.jsonl", 3)
    packed = tmp_path / "texts.jsonl.zst"
    packed.write_bytes(zstandard.compress(plain.read_bytes()))
    plain_prompts, packed_prompts = (
        toolbench(path, requests=20, lists=3, zipf=1.0, seed=0) for path in (plain, packed)
    )
    assert packed_prompts == plain_prompts


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no such file.*gone\.jsonl"):
        toolbench(tmp_path / "gone.jsonl", requests=1, lists=1, zipf=1.0, seed=0)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "tools": []}\n{"query": "q"}\n')
    with pytest.raises(SettingsError, match=r"bad\.jsonl, line 2"):
        toolbench(bad, requests=1, lists=1, zipf=1.0, seed=0)
    few = write_texts(tmp_path / "few.jsonl", 2)
    with pytest.raises(SettingsError, match="2 distinct tool lists, 3"):
        toolbench(few, requests=1, lists=3, zipf=1.0, seed=0)


def test_the_ideal_share_by_hand() -> None:
    def prompt(*tokens: int) -> bytes:
        return array("I", tokens).tobytes()

    # Blocks of two. The second shares one block (of 5 tokens: two are cacheable); the third repeats the first, of
    # whose four tokens the last is always computed: one block.
    ideal = ideal_share([prompt(1, 2, 3, 4), prompt(1, 2, 9, 9, 9), prompt(1, 2, 3, 4)], block_tokens=2)
    assert (ideal.prompt_tokens, ideal.cached_tokens) == (13, 4)
    assert ideal.share == pytest.approx(4 / 13)
    assert ideal_share([], 2).share == 0.0
