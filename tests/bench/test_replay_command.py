"""`prebled replay`: its JSON, its table, its plot, and what it says to bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prebled.bench.replay_loop as replay_module
from prebled import collector
from prebled.bench.replay_report import percentile, spread
from prebled.cli import main

ARGUMENTS = ["--workers", "2", "--profile", "mistral-7b-a6000"]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often the collector was set; left alone, or the process of the tests would keep it so."""
    times: list[None] = []
    monkeypatch.setattr(collector, "settle", lambda: times.append(None))
    return times


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """Forty requests, half of each prompt shared by all."""
    rows = [
        {
            "arrival_ms": 100 * number,
            "input_tokens": 40 * 16,
            "output_tokens": 1 + number % 30,
            "session": None,
            "block_size": 16,
            "hash_runs": [0, 20, 1000 + 20 * number, 20],
        }
        for number in range(40)
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def replayed(trace_file: Path, *arguments: str) -> int:
    return main(["replay", str(trace_file), *ARGUMENTS, *arguments])


def figures(text: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(text)["results"]
    return results


def test_decisions_are_timed_with_the_collector_of_a_daemon(trace_file: Path, settled: list[None]) -> None:
    assert replayed(trace_file, "--policy", "e2") == 0
    assert len(settled) == 1


def test_the_json_has_one_object_for_each_policy(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replayed(trace_file, "--policy", "e2", "--policy", "round-robin", "--rate-scale", "2", "--json", "-") == 0
    first, second = figures(capsys.readouterr().out)
    assert list(first) == [
        *("trace", "policy", "workers", "profile", "rate_scale", "requests", "completed", "failed"),
        *("sim_seconds", "wall_seconds", "ttft_s", "tpot_s", "e2e_s", "queue_s"),
        *("hit_ratio", "uncached_max_over_mean", "decisions", "decide_us"),
    ]
    assert (first["trace"], first["policy"], second["policy"]) == ("small.jsonl", "e2", "round-robin")
    assert (first["workers"], first["profile"], first["rate_scale"]) == (2, "mistral-7b-a6000", 2.0)
    assert (first["requests"], first["completed"], first["failed"]) == (40, 40, 0)
    assert all(list(first[name]) == ["mean", "p50", "p90", "p99"] for name in ("ttft_s", "tpot_s", "e2e_s", "queue_s"))
    assert list(first["decisions"]) == ["exploit", "explore", "rebalanced", "replicated"]
    assert first["decisions"]["exploit"] + first["decisions"]["explore"] == 40
    assert list(first["decide_us"]) == ["p50", "p99"]
    assert 0 < first["ttft_s"]["p50"] < first["e2e_s"]["p50"] < first["sim_seconds"]


def test_a_file_is_written_beside_a_table(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert replayed(trace_file, "--policy", "lmetric", "--limit", "10", "--json", str(out)) == 0
    assert figures(out.read_text())[0]["requests"] == 10
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == "policy"
    assert table[1].split()[:2] == ["lmetric", "10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "small.jsonl"]


def test_another_process_finds_the_same_to_the_last_digit(trace_file: Path) -> None:
    outputs = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "prebled.cli", "replay", str(trace_file), *ARGUMENTS]
        command += ["--policy", "e2", "--policy", "dualmap", "--json", "-"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        results = figures(done.stdout)
        for result in results:
            del result["wall_seconds"], result["decide_us"]
        outputs.append(results)
    assert outputs[0] == outputs[1]


def test_fewer_kv_tokens_hit_less(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hits = []
    for kv_tokens in ("198516", "800"):
        assert (
            replayed(trace_file, "--policy", "e2", "--kv-tokens", kv_tokens, "--block-tokens", "16", "--json", "-") == 0
        )
        hits.append(figures(capsys.readouterr().out)[0]["hit_ratio"])
    assert hits[0] > hits[1]


def test_refused_requests_are_counted_and_said(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replayed(trace_file, "--policy", "e2", "--kv-tokens", "640", "--json", "-") == 0
    said = capsys.readouterr()
    assert figures(said.out)[0]["failed"] == 40
    assert said.err == "e2: 40 of 40 requests were refused: context_length_exceeded\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--policy", "tarot"], 2, "'tarot'"),
        (["--policy", "e2", "--policy", "tarot"], 2, "round-robin"),
        (
            ["--policy", "e2", "--profile", "abacus"],
            2,
            "known are mistral-7b-a6000, llama-3-70b-h100, llama-3-70b-4xh100, custom:FILE",
        ),
        (["--policy", "e2", "--profile", "custom:no.toml"], 2, "custom:no.toml"),
        (["--policy", "e2", "--kv-tokens", "100"], 2, "kv_tokens is 100"),
        (["--policy", "e2", "--workers", "0"], 2, "0: must be at least 1"),
        (["--policy", "e2", "--rate-scale", "-1"], 2, "-1: must be a number above 0"),
        (["--policy", "e2", "--limit", "few"], 2, "few: not a whole number"),
        ([], 2, "--policy"),
    ],
)
def test_bad_usage_is_named(
    trace_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    try:
        found = replayed(trace_file, *arguments)
    except SystemExit as error:
        found = error.code  # type: ignore[assignment]
    err = capsys.readouterr().err
    assert (found, err.count("\n")) == (code, 1)
    assert said in err


def test_a_trace_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"arrival_ms": 0, "inp')
    for path in (broken, tmp_path / "missing.jsonl"):
        assert replayed(path, "--policy", "e2") == 1
        assert path.name in capsys.readouterr().err


def test_an_interrupted_replay_writes_nothing(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(replay_module.DecisionCount):
        """Ctrl-C comes in the middle of the second replay."""

        def add(self, placement: Any) -> None:
            super().add(placement)
            placed.append(placement)
            if len(placed) == 60:
                signal.raise_signal(signal.SIGINT)

    placed: list[Any] = []
    monkeypatch.setattr(replay_module, "DecisionCount", Interrupted)
    out = tmp_path / "out.json"
    assert replayed(trace_file, "--policy", "e2", "--policy", "round-robin", "--json", str(out)) == 130
    assert not out.exists()
    assert len(placed) == 60
    assert capsys.readouterr().err == "prebled: interrupted\n"


CUSTOM = {
    "prefill_floor_s": 0.01,
    "prefill_base_s": 0.01,
    "prefill_token_s": 1e-4,
    "prefill_context_s": 0.0,
    "prefill_token_context_s": 0.0,
    "decode_base_s": 0.01,
    "decode_sequence_s": 0.0,
    "decode_context_s": 0.0,
    "kv_tokens": 5000,
}


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_profile_of_ones_own(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    own = tmp_path / f"own{suffix}"
    lines = "\n".join(f"{name} = {value}" for name, value in CUSTOM.items())
    own.write_text(json.dumps(CUSTOM) if suffix == ".json" else lines)
    arguments = ["--policy", "e2", "--profile", f"custom:{own}", "--limit", "1", "--json", "-"]
    assert replayed(trace_file, *arguments) == 0
    result = figures(capsys.readouterr().out)[0]
    assert result["profile"] == f"custom:{own}"
    assert result["ttft_s"]["mean"] == pytest.approx(0.01 + 640e-4)
    assert result["tpot_s"]["mean"] in (0.0, pytest.approx(0.01))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kv_tokens": 0}, "kv_tokens is 0"),
        ({"kv_tokens": None}, "kv_tokens is None"),
        ({"prefill_token_s": -1.0}, "prefill_token_s = -1.0"),
        ({"prefill_token_s": "fast"}, "prefill_token_s"),
        ({"warp": 9}, "warp"),
    ],
)
def test_a_profile_that_is_none_is_named(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, object], said: str
) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**CUSTOM, **changed}))
    assert replayed(trace_file, "--policy", "e2", "--profile", f"custom:{own}") == 2
    err = capsys.readouterr().err
    assert said in err
    assert "own.json" in err


@pytest.mark.parametrize(
    ("name", "content"), [("own.json", "{"), ("own.json", "[]"), ("own.toml", "= 1"), ("own.txt", "")]
)
def test_a_profile_file_that_cannot_be_read_is_named(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    assert replayed(trace_file, "--policy", "e2", "--profile", f"custom:{tmp_path / name}") == 2
    assert name in capsys.readouterr().err


def test_a_plot_is_a_picture(trace_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    assert replayed(trace_file, "--policy", "e2", "--policy", "round-robin", "--plot", str(out)) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_is_refused_before_anything_is_replayed(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert replayed(trace_file, "--policy", "e2", "--plot", str(tmp_path / "out.png")) == 1
    said = capsys.readouterr()
    assert "prebled[bench]" in said.err
    assert not said.out


def test_percentiles_lie_between_neighbours_in_proportion() -> None:
    assert [percentile([1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert percentile([7.0], 0.99) == 7.0
    assert spread([3.0, 1.0, 2.0]).mean == 2.0
    assert spread([]).p99 == 0.0
