"""Traces made for a replay: paths in another block size, cuts, arrivals, closed loops."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prebled.bench.trace import DEFAULT_BLOCK_TOKENS, Trace, TraceRequest, read_trace
from prebled.errors import SettingsError
from prebled.settings import Settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"arrival_ms": 0, "output_tokens": 5} | row) + "\n" for row in rows))
    return path


def prompt(tokens: int, *runs: int, size: int = 16, **more: Any) -> dict[str, Any]:
    return {"input_tokens": tokens, "hash_runs": list(runs), "block_size": size, **more}


def hashes(request: TraceRequest) -> list[int]:
    return np.frombuffer(request.path, "<u8").tolist()


def shared(one: TraceRequest, other: TraceRequest) -> int:
    """Blocks at the start of both, and nothing in common beyond."""
    a, b = hashes(one), hashes(other)
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert not set(a[count:]) & set(b[count:])
    return count


def test_the_default_block_size_is_the_daemons() -> None:
    assert Settings().block_tokens == DEFAULT_BLOCK_TOKENS


class TestBlocks:
    @pytest.mark.parametrize(
        ("size", "block_tokens", "blocks", "same"),
        [
            # Prompts of 200 and 180 tokens that share 96; what counts is how many of ours end within that.
            (16, 16, (12, 11), 6),
            (16, 32, (6, 5), 3),
            (16, 64, (3, 2), 1),
            (32, 8, (25, 22), 12),
            (32, 16, (12, 11), 6),
            (16, 40, (5, 4), 2),  # neither divides the other
            (32, 24, (8, 7), 4),
            (16, 512, (0, 0), 0),
        ],
    )
    def test_any_size_becomes_any_other(
        self, path: Path, size: int, block_tokens: int, blocks: tuple[int, int], same: int
    ) -> None:
        common = 96 // size
        write(
            path,
            prompt(200, 0, 200 // size, size=size),
            prompt(180, 0, common, 500, 180 // size - common, size=size),
        )
        trace = read_trace(path, block_tokens=block_tokens)
        one, other = trace.requests
        assert trace.block_tokens == block_tokens
        assert (len(hashes(one)), len(hashes(other))) == blocks
        assert shared(one, other) == same
        for request in trace.requests:
            assert len(set(hashes(request))) == len(hashes(request))
            assert 0 not in hashes(request)

    def test_equal_prompts_share_all_but_the_tail_that_nothing_identifies(self, path: Path) -> None:
        # 100 tokens are one block of 64 and 36 more: two blocks of 16 that no full recorded block covers.
        write(path, prompt(100, 7, 1, size=64), prompt(100, 7, 1, size=64), prompt(100, 7, 2, size=64))
        one, other, partial = read_trace(path, block_tokens=16).requests
        assert [len(hashes(each)) for each in (one, other, partial)] == [6, 6, 6]
        assert shared(one, other) == 4
        assert shared(one, partial) == 4  # an identifier for the last, partial block changes nothing

    def test_prompts_without_identifiers_share_nothing(self, path: Path) -> None:
        write(path, *({"input_tokens": 640} for _ in range(3)))
        requests = read_trace(path, block_tokens=64).requests
        assert len({block for each in requests for block in hashes(each)}) == 30

    def test_the_seed_changes_hashes_not_what_is_shared(self, path: Path) -> None:
        write(path, prompt(64, 0, 4), prompt(64, 0, 2, 9, 2), prompt(40))
        traces = [read_trace(path, block_tokens=16, seed=seed) for seed in (0, 1)]
        assert [shared(*trace.requests[:2]) for trace in traces] == [2, 2]
        assert not set(hashes(traces[0].requests[0])) & set(hashes(traces[1].requests[0]))
        assert traces[0] == read_trace(path, block_tokens=16, seed=0)

    def test_many_blocks_are_hashed_as_few_are(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [prompt(160, 0, 5, 100 + 9 * i, 5, session="s", arrival_ms=i) for i in range(40)]
        write(path, *rows, prompt(99, arrival_ms=50), prompt(160, 0, 10, arrival_ms=60))
        whole = read_trace(path, block_tokens=16)
        monkeypatch.setattr("prebled.bench.trace_blocks._AT_ONCE", 25)
        assert read_trace(path, block_tokens=16) == whole


class TestNextTurn:
    def test_the_next_turn_says_what_the_answer_fills(self, path: Path) -> None:
        write(
            path,
            prompt(40, 0, 2, session="a", output_tokens=30),
            prompt(40, 0, 2, session="b", output_tokens=30, arrival_ms=1),
            prompt(90, 0, 2, 5, 3, session="a", arrival_ms=2),
        )
        first, other, second = read_trace(path, block_tokens=16).requests
        assert first.next_path == second.path
        assert first.next_path.startswith(first.path)
        assert (other.next_path, second.next_path) == (b"", b"")

    def test_the_tail_of_a_prompt_is_what_the_next_turn_has_there(self, path: Path) -> None:
        # One full block of 64, then 36 tokens which only the next turn, and of it the turn after, identify.
        write(
            path,
            prompt(100, 0, 2, size=64, session="a"),
            prompt(140, 0, 1, 3, 2, size=64, session="a", arrival_ms=1),
            prompt(200, 0, 1, 3, 1, 6, 1, size=64, session="a", arrival_ms=2),
            prompt(100, 0, 2, size=64, arrival_ms=3),
        )
        first, second, third, alone = read_trace(path, block_tokens=16).requests
        assert shared(first, second) == 6
        assert shared(second, third) == 8
        assert first.next_path == second.path
        assert shared(first, alone) == 4

    @pytest.mark.parametrize(
        "following",
        [
            prompt(90, 0, 1, 9, 4, session="a", arrival_ms=1),  # another prompt from the second block on
            prompt(40, 0, 2, session="a", arrival_ms=1),  # no room for the answer
            prompt(31, 0, 1, session="a", arrival_ms=1),  # shorter
            prompt(90, 0, 5, session="b", arrival_ms=1),  # another session
            prompt(90, 0, 5, session=None, arrival_ms=1),
        ],
    )
    def test_what_does_not_go_on_is_no_next_turn(self, path: Path, following: dict[str, Any]) -> None:
        write(path, prompt(40, 0, 2, session="a"), following)
        assert [each.next_path for each in read_trace(path, block_tokens=16).requests] == [b"", b""]

    def test_a_cut_ends_what_is_known(self, path: Path) -> None:
        rows = [prompt(40 + 30 * i, 0, (40 + 30 * i) // 16, session="a", arrival_ms=i) for i in range(8)]
        requests = read_trace(write(path, *rows), block_tokens=16, limit=4).requests
        assert [bool(each.next_path) for each in requests] == [True, True, True, False]


class TestArrivals:
    def test_the_first_comes_at_zero_and_the_rate_scales(self, path: Path) -> None:
        write(path, *({"input_tokens": 9, "arrival_ms": ms} for ms in (500, 1500, 4500)))
        assert [each.arrival_s for each in read_trace(path).requests] == [0.0, 1.0, 4.0]
        assert [each.arrival_s for each in read_trace(path, rate_scale=2.0).requests] == [0.0, 0.5, 2.0]

    def test_a_cut_is_a_window_that_the_seed_picks(self, path: Path) -> None:
        write(path, *({"input_tokens": 1 + i, "arrival_ms": 10 * i} for i in range(100)))
        windows = set()
        for seed in range(8):
            requests = read_trace(path, limit=30, seed=seed).requests
            tokens = [each.prompt_tokens for each in requests]
            assert tokens == list(range(tokens[0], tokens[0] + 30))
            assert [each.arrival_s for each in requests] == pytest.approx([i / 100 for i in range(30)])
            windows.add(tokens[0])
        assert len(windows) > 4
        assert read_trace(path, limit=100, seed=1).requests == read_trace(path, limit=10**6, seed=1).requests

    def test_coarse_stamps_are_spread_over_their_step(self, path: Path) -> None:
        stamps = [3000 * (i // 5) for i in range(100)]
        write(path, *({"input_tokens": 1 + i, "arrival_ms": ms} for i, ms in enumerate(stamps)))
        requests = read_trace(path, seed=1).requests
        assert [each.prompt_tokens for each in requests] == list(range(1, 101))
        arrivals = np.array([each.arrival_s for each in requests])
        assert (np.diff(arrivals) > 0).all()
        # All but the shift by the first are within their three seconds, and fill them evenly.
        within = arrivals - np.array(stamps) / 1e3
        assert np.ptp(within) < 3
        assert np.ptp(within) > 2.5
        assert read_trace(path, seed=1).requests == requests
        assert [each.arrival_s for each in read_trace(path, seed=2).requests] != arrivals.tolist()

    @pytest.mark.parametrize(
        "stamps",
        [
            [3000 * i for i in range(50)],  # coarse, but each for itself
            [100 * (i // 5) for i in range(100)],  # equal, but fine
            [3000 * (i // 5) + (i == 60) for i in range(100)],  # one between
            [0] * 50,  # all at once
        ],
    )
    def test_other_stamps_stay(self, path: Path, stamps: list[int]) -> None:
        stamps.sort()
        write(path, *({"input_tokens": 9, "arrival_ms": ms} for ms in stamps))
        assert [each.arrival_s for each in read_trace(path).requests] == [ms / 1e3 for ms in stamps]

    def test_long_prompts_can_be_left_out(self, path: Path) -> None:
        write(path, *({"input_tokens": tokens, "arrival_ms": tokens} for tokens in (10, 20, 30, 40)))
        requests = read_trace(path, longest_prompt=30).requests
        assert [(each.prompt_tokens, each.arrival_s) for each in requests] == [(10, 0.0), (20, 0.01), (30, 0.02)]
        with pytest.raises(SettingsError, match="no prompt has at most 9 tokens"):
            read_trace(path, longest_prompt=9)


class TestClosedLoop:
    SESSIONS = 200

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Sessions of three turns, seven seconds apart in the recording, thought about for two and 90 seconds."""
        turns = [(0, 0), (7000, 2000), (14_000, 90_000)]
        return write(
            tmp_path / "sessions.jsonl",
            *(
                prompt(100 + 10 * turn, 100 * i, 6, session=f"u{i}", arrival_ms=ms, think_ms=think_ms)
                for i in range(self.SESSIONS)
                for turn, (ms, think_ms) in enumerate(turns)
            ),
        )

    def starts(self, trace: Trace) -> list[float]:
        return [each.arrival_s for each in trace.requests[::3]]

    def test_turns_stand_together_and_sessions_start_by_poisson(self, path: Path) -> None:
        trace = read_trace(path, session_rate=0.5, seed=4)
        assert trace.is_closed_loop
        for i in range(0, len(trace.requests), 3):
            turns = trace.requests[i : i + 3]
            assert len({each.session for each in turns}) == 1
            assert [each.prompt_tokens for each in turns] == [100, 110, 120]
            assert [each.think_s for each in turns] == [0.0, 2.0, 90.0]
            # Later turns stand where the recording had them.
            assert [each.arrival_s - turns[0].arrival_s for each in turns] == pytest.approx([0, 7, 14])
        sessions = [each.session for each in trace.requests[::3]]
        assert sessions != sorted(sessions, key=lambda name: int(name[1:]))
        assert set(sessions) == {f"u{i}" for i in range(self.SESSIONS)}
        gaps = [b - a for a, b in pairwise(self.starts(trace))]
        assert self.starts(trace)[0] == 0.0
        assert np.mean(gaps) == pytest.approx(2.0, rel=0.2)
        assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.25)

    def test_the_rate_scales_starts_not_thoughts(self, path: Path) -> None:
        slow, fast = (read_trace(path, session_rate=0.5, rate_scale=scale) for scale in (1.0, 4.0))
        assert self.starts(fast) == pytest.approx([start / 4 for start in self.starts(slow)])
        assert [each.think_s for each in fast.requests] == [each.think_s for each in slow.requests]

    def test_a_cut_takes_whole_sessions_but_the_last(self, path: Path) -> None:
        requests = read_trace(path, limit=8, seed=2).requests
        assert [each.prompt_tokens for each in requests] == [100, 110, 120, 100, 110, 120, 100, 110]
        others = read_trace(path, limit=8, seed=3).requests
        assert {each.session for each in requests} != {each.session for each in others}

    def test_bounds_on_thoughts_and_prompts(self, path: Path) -> None:
        requests = read_trace(path, longest_think_s=30, longest_prompt=110).requests
        assert [(each.prompt_tokens, each.think_s) for each in requests[:4]] == [(100, 0), (110, 2), (100, 0), (110, 2)]
        assert [each.think_s for each in read_trace(path, longest_think_s=30).requests[:3]] == [0, 2, 30]

    def test_a_session_ends_at_its_first_long_prompt(self, tmp_path: Path) -> None:
        rows = [prompt(tokens, session=name, think_ms=0) for name, tokens in [("a", 9), ("b", 9), ("b", 50), ("b", 9)]]
        requests = read_trace(write(tmp_path / "x.jsonl", *rows), longest_prompt=20).requests
        assert sorted((each.session, each.prompt_tokens) for each in requests) == [("a", 9), ("b", 9)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_tokens": 0}, "block_tokens is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": -5}, "limit is -5"),
        ({"rate_scale": 0.0}, r"rate_scale is 0\.0"),
        ({"rate_scale": float("nan")}, "rate_scale is nan"),
        ({"rate_scale": float("inf")}, "rate_scale is inf"),
        ({"session_rate": -1.0}, r"session_rate is -1\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"trace_block_tokens": -16}, "trace_block_tokens is -16"),
        ({"longest_think_s": -1.0}, r"longest_think_s is -1\.0"),
    ],
)
def test_values_out_of_range_are_named(path: Path, arguments: dict[str, Any], message: str) -> None:
    write(path, prompt(40, 0, 2))
    with pytest.raises(SettingsError, match=message) as caught:
        read_trace(path, **arguments)
    assert caught.value.param == next(iter(arguments))
