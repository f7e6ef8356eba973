"""Trace files: each format, where the block size comes from, and a clear error for each fault."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from prebled.bench.trace import load_recording
from prebled.bench.trace_chains import broken_chain
from prebled.bench.trace_files import read_recording
from prebled.bench.trace_recording import Recording, runs_of
from prebled.bench.trace_write import write_recording
from prebled.errors import SettingsError


def row(arrival_ms: float = 0, tokens: int = 100, output: Any = 5, **more: Any) -> dict[str, Any]:
    return {"arrival_ms": arrival_ms, "input_tokens": tokens, "output_tokens": output, **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return path


def ids_of(recording: Recording) -> list[list[int]]:
    ids, firsts = recording.block_ids(0, len(recording.sessions))
    return [part.tolist() for part in np.split(ids, firsts[1:])]


def columns(recording: Recording) -> list[tuple[Any, ...]]:
    return [
        *zip(
            recording.arrival_s.tolist(),
            recording.prompt_tokens.tolist(),
            recording.output_tokens.tolist(),
            recording.sessions,
            ids_of(recording),
            strict=True,
        )
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_runs_expand_to_blocks(path: Path) -> None:
    write(
        path,
        row(0, 50, 3, session="a", hash_runs=[0, 2, 9, 1], block_size=16, tools=["ignored"]),
        row(1500.25, 20, 1, session=None, hash_runs=None, block_size=16),
        row(1500.25, 40, 0, hash_runs=[0, 2], block_size=16),
    )
    recording = read_recording(path)
    assert recording.trace_block_tokens == 16
    assert not recording.is_closed_loop
    # An answer that the client broke off before its first token still takes a prefill, which makes one.
    assert columns(recording) == [
        (0.0, 50, 3, "a", [0, 1, 9]),
        (1.50025, 20, 1, "", []),
        (1.50025, 40, 1, "", [0, 1]),
    ]


@pytest.mark.parametrize("frames", [1, 3])
def test_packed_is_plain(tmp_path: Path, frames: int) -> None:
    plain = write(tmp_path / "plain.jsonl", *(row(i, hash_runs=[i, 6], block_size=16) for i in range(0, 90, 9)))
    content = plain.read_bytes()
    cuts = [len(content) * i // frames for i in range(frames + 1)]
    packed = tmp_path / "packed"  # known by its content, not by its name
    packed.write_bytes(
        b"".join(zstandard.compress(content[a:b]) for a, b in pairwise(cuts)),
    )
    assert columns(read_recording(packed)) == columns(read_recording(plain))


def test_mooncake(path: Path) -> None:
    # Blocks of 512; the last of each prompt is partial. The third goes on from the first: it has all of its blocks but
    # the partial one. The fourth shares only the root, so it is a conversation of its own.
    write(
        path,
        {"timestamp": 0, "input_length": 1100, "output_length": 40, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 9]},
        {"timestamp": 9000, "input_length": 1600, "output_length": 5, "hash_ids": [0, 1, 10, 11]},
        {"timestamp": 9000, "input_length": 513, "output_length": 5, "hash_ids": [0, 12]},
    )
    recording = read_recording(path)
    assert recording.trace_block_tokens == 512
    assert columns(recording) == [
        (0.0, 1100, 40, "s0", [0, 1, 2]),
        (3.0, 600, 7, "s1", [0, 9]),
        (9.0, 1600, 5, "s0", [0, 1, 10, 11]),
        (9.0, 513, 5, "s3", [0, 12]),
    ]
    assert recording.full_blocks.tolist() == [2, 1, 3, 1]


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_bytes(
        b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        b"2023-11-16 23:59:59.9799600,4808,10\r\n"
        b"2023-11-17 00:00:00.0319600,3180,8\r\n"
    )
    recording = read_recording(path)
    assert recording.trace_block_tokens is None
    assert columns(recording) == [(0.0, 4808, 10, "", []), (0.052, 3180, 8, "", [])]


def test_a_closed_loop(path: Path) -> None:
    write(
        path,
        row(0, session="a", think_ms=0, api_ms=700, hash_runs=[0, 1], block_size=64),
        row(9000, session="a", think_ms=4000.5, api_ms=None),
        row(10_000, session="a", think_ms=None, api_ms=800),  # 1 s after the one before, which has no api_ms
        row(12_000, session="a", think_ms=None),  # 2 s, of which the answer took 0.8
        row(0, session="b", think_ms=None),
    )
    write(path, *(json.loads(line) | {"block_size": 64} for line in path.read_text().splitlines()))
    recording = read_recording(path)
    assert recording.is_closed_loop
    assert recording.sessions == ["a", "a", "a", "a", "b"]
    assert recording.think_s.tolist() == [0.0, 4.0005, 1.0, 1.2, 0.0]


class TestBlockSize:
    """Caller, lines, index, lengths: the first of them that says something."""

    def test_the_caller_comes_before_the_lines(self, path: Path) -> None:
        write(path, row(tokens=64, hash_runs=[0, 2], block_size=16))
        assert read_recording(path).trace_block_tokens == 16
        assert read_recording(path, 32).trace_block_tokens == 32

    @pytest.mark.parametrize("name", ["trace.jsonl", "sub/trace.jsonl"])
    def test_an_index_beside_or_one_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        (tmp_path / "sub").mkdir()
        write(tmp_path / name, row(tokens=100, hash_runs=[0, 2]))
        index = [{"file": "other.jsonl", "block_size": 7}, {"file": name, "block_size": 48}]
        (tmp_path / "INDEX.json").write_text(json.dumps(index))
        assert read_recording(tmp_path / name).trace_block_tokens == 48
        monkeypatch.chdir((tmp_path / name).parent)
        assert read_recording(Path("trace.jsonl")).trace_block_tokens == 48

    @pytest.mark.parametrize("partial", [False, True], ids=["full blocks", "with the partial one"])
    @pytest.mark.parametrize("size", [16, 64, 512])
    def test_lengths_tell(self, path: Path, size: int, partial: bool) -> None:
        lengths = [3 * size + 5, 7 * size - 1, 40 * size + size // 2]
        blocks = [-(-length // size) if partial else length // size for length in lengths]
        write(path, *(row(i, lengths[i], hash_runs=[1000 * i, blocks[i]]) for i in range(3)))
        assert read_recording(path).trace_block_tokens == size

    def test_what_does_not_tell_is_refused(self, path: Path) -> None:
        # 1 block for 20 tokens: 16 full ones or 32 or more partial.
        write(path, row(tokens=20, hash_runs=[0, 1]))
        with pytest.raises(SettingsError, match=r"not given.*16 and 32 and .*has 1 for 20 tokens"):
            read_recording(path)
        write(path, row(tokens=100, hash_runs=[0, 70]))
        with pytest.raises(SettingsError, match=r"not given.*none fits.*has 70 for 100 tokens"):
            read_recording(path)

    def test_lines_that_differ_are_refused(self, path: Path) -> None:
        write(path, row(block_size=16), row(block_size=64))
        with pytest.raises(SettingsError, match="line 2: block_size is 64, that of the first request is 16"):
            read_recording(path)

    def test_a_broken_index_is_named(self, path: Path) -> None:
        write(path, row(hash_runs=[0, 1]))
        (path.parent / "INDEX.json").write_text("{")
        with pytest.raises(SettingsError, match=r"INDEX\.json: not a list of objects"):
            read_recording(path)


GOOD = row(0, hash_runs=[0, 6], block_size=16)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"line 1: not JSON.*: \{"),
        (["[1]"], r"line 1: not a JSON object: \[1\]"),
        ([{"prompt": "x"}], r"line 1: not a request of a known trace: it has prompt; expected arrival_ms"),
        ([GOOD, json.dumps(GOOD)[:30]], r"line 2: .*truncated.*: \{\"arrival_ms\""),
        (["", GOOD, "", "\x01"], "line 4: "),
        ([row(-1)], r"line 1: arrival_ms is -1: .*>= 0"),
        ([row(0), row(5), row(4)], r"line 3: arrives at 0\.004 s, before the request above it \(0\.005 s\)"),
        ([row(tokens=0)], "line 1: input_tokens is 0: .*>= 1"),
        ([row(), row(tokens=-3)], "line 2: input_tokens is -3"),
        ([row(tokens=12.5)], r"line 1: input_tokens is 12\.5: Expected `int`, got `float`"),
        ([row(tokens="9")], "line 1: input_tokens is '9': Expected `int`, got `str`"),
        ([row(output=-1)], "line 1: output_tokens is -1"),
        ([{"arrival_ms": 0, "input_tokens": 1}], "line 1: .*missing required field `output_tokens`"),
        (
            [GOOD, row(1, 40, hash_runs=[6, 4], block_size=16)],
            "line 2: 4 blocks of 16 tokens are more than .* 40 tokens",
        ),
        ([row(hash_runs=[0, 6, 7], block_size=16)], r"line 1: hash_runs has 3 numbers, they come in pairs"),
        ([GOOD, row(hash_runs=[9, 0], block_size=16)], "line 2: hash_runs has a run of 0 blocks, its prompt is 100"),
        ([row(hash_runs=[9, 1 << 40], block_size=16)], "line 1: hash_runs has a run of 1099511627776 blocks"),
        ([row(hash_runs=[-1, 1], block_size=16)], r"line 1: hash_runs is \[-1, 1\]"),
        ([row(session="a", think_ms=5), row(1, session="a")], "line 2: .*missing required field `think_ms`"),
        ([row(session="", think_ms=5)], "line 1: session is ''"),
        (
            [row(9, session="a", think_ms=0), row(0, session="b", think_ms=0), row(8, session="a", think_ms=0)],
            "line 3: arrival_ms is 8, the turn before in 'a' has 9",
        ),
        ([{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}], "line 1: 2 blocks of 512"),
        ([{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": "x"}], "line 1: hash_ids is 'x'"),
    ],
)
def test_faults_of_json_lines_are_named(path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"trace\.jsonl, {message}"):
        read_recording(write(path, *lines))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([[0, 3], [7, 1, 2, 1]], r"line 2: block 2 does not come after the same block as in line 1"),
        ([[5, 1, 9, 1], [6, 1, 9, 1]], "line 2: block 9 does not come after the same block as in line 1"),
        ([[7, 1, 2, 1], [0, 3]], "line 1: block 2 does not come after the same block as in line 2"),
        ([[0, 3], [1, 1]], "line 2: block 1 does not come after the same block as in line 1"),
        ([[3, 2, 3, 1]], "line 1: block 3 does not come after"),
    ],
)
def test_identifiers_that_are_not_chained_are_refused(path: Path, runs: list[list[int]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_recording(write(path, *(row(i, hash_runs=each, block_size=16) for i, each in enumerate(runs))))


def test_chains_are_found_broken_as_block_by_block() -> None:
    chance = random.Random(5)
    broken = 0
    for _ in range(1500):
        # Walks in a small tree, cut into runs at any place; sometimes one block is another.
        paths = [[0]]
        for _ in range(chance.randint(1, 4)):
            path = chance.choice(paths)[: chance.randint(1, 5)]
            fresh = 1 + max(block for each in paths for block in each)
            paths.append([*path, *range(fresh, fresh + chance.randint(0, 4))])
        if chance.random() < 0.5:
            path = chance.choice(paths)
            path[chance.randrange(len(path))] = chance.randrange(12)
        before: dict[int, int | None] = {}
        expected = all(
            before.setdefault(b, a) == a for path in paths for a, b in zip([None, *path], path, strict=False)
        )
        ids = np.array([block for path in paths for block in path])
        starts, counts, bounds = runs_of(ids, np.array([len(path) for path in paths]))
        lengths = np.array([16 * len(path) for path in paths])
        ones = np.ones(len(paths), np.int64)
        recording = Recording(
            arrival_s=np.zeros(len(paths)),
            prompt_tokens=lengths,
            output_tokens=ones,
            sessions=[""] * len(paths),
            think_s=np.zeros(len(paths)),
            trace_block_tokens=16,
            run_starts=starts,
            run_counts=counts,
            run_bounds=bounds,
        )
        assert [part for part in ids_of(recording) if part] == paths
        assert (broken_chain(recording) is None) == expected
        broken += not expected
    assert 300 < broken < 1200


def test_a_run_may_be_broken_anywhere(path: Path) -> None:
    write(path, row(0, hash_runs=[0, 4], block_size=16), row(1, hash_runs=[0, 1, 1, 2, 9, 1, 10, 2], block_size=16))
    assert ids_of(read_recording(path)) == [[0, 1, 2, 3], [0, 1, 2, 9, 10, 11]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n", "line 1: columns are a, b, c; expected TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,Model\n", "line 1: columns are TIMESTAMP.*Model; expected"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,5\n", "line 2: 2 values instead of 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,5,5\n", "line 2: TIMESTAMP is 'noon'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,5.5,5\n", "line 2: ContextTokens is '5.5'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,0,5\n", "line 2: ContextTokens is '0'"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:01,5,5\n2023-11-16 18:00:00,5,5\n",
            r"line 3: arrives at -1\.000 s",
        ),
    ],
)
def test_faults_of_tables_are_named(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_recording(path)


def test_files_that_are_missing_empty_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no such file: .*gone\.jsonl"):
        read_recording(tmp_path / "gone.jsonl")
    with pytest.raises(SettingsError, match="Is a directory"):
        read_recording(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(SettingsError, match=r"empty\.jsonl: no requests"):
        read_recording(empty)
    whole = zstandard.compress("".join(json.dumps(row(i * i, 100 + i)) + "\n" for i in range(5000)).encode())
    packed = tmp_path / "cut.jsonl.zst"
    for kept in (len(whole) - 1, len(whole) // 2, 6):
        packed.write_bytes(whole[:kept])
        with pytest.raises(SettingsError, match=r"cut\.jsonl\.zst: cut short after \d+ bytes"):
            read_recording(packed)
    packed.write_bytes(json.dumps(GOOD).encode())
    with pytest.raises(SettingsError, match=r"cut\.jsonl\.zst: not a zstd file"):
        read_recording(packed)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst"])
def test_what_is_written_reads_the_same(tmp_path: Path, suffix: str) -> None:
    _, recording = load_recording("workload:toolbench*2+embodied?requests=300&rate=7.3", seed=5)
    path = tmp_path / f"out.{suffix}"
    write_recording(path, recording)
    again = read_recording(path)
    assert columns(again) == columns(recording)
    assert again.trace_block_tokens == recording.trace_block_tokens
    assert [each.name for each in tmp_path.iterdir()] == [path.name]  # nothing half-written is left


def test_a_closed_loop_and_one_without_blocks_are_written_too(tmp_path: Path, path: Path) -> None:
    write(path, row(0, session="a", think_ms=0), row(70, session="a", think_ms=12.5), row(0, session="b", think_ms=0))
    recording = read_recording(path)
    write_recording(tmp_path / "again.jsonl", recording)
    again = read_recording(tmp_path / "again.jsonl")
    assert again.is_closed_loop
    assert again.trace_block_tokens is None
    assert columns(again) == columns(recording)
    assert again.think_s.tolist() == [0.0, 0.0125, 0.0]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _, recording = load_recording("workload:videoqa?requests=2")
    with pytest.raises(SettingsError, match=r"gone/out\.jsonl: No such file"):
        write_recording(tmp_path / "gone" / "out.jsonl", recording)
