"""`prebled bench decide` on a small tree: what it prints, and that what it prints is what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from prebled.bench.decide import Mix, Prompts, measure
from prebled.core.e2 import E2
from prebled.errors import SettingsError

SMALL = ("--workers", "3", "--prompt-tokens", "640", "--block-tokens", "16", "--blocks", "4000", "--decisions", "250")


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prebled.cli", "bench", "decide", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_report_has_the_promised_keys_and_sound_numbers() -> None:
    done = bench(*SMALL, "--policy", "least-loaded", "--mix", "explore", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert list(report) == [
        *("workers", "blocks", "decide_us", "hash_us", "finish_us", "per_s", "bytes_per_block", "policy", "mix"),
        *("stored_us", "removed_us", "adjusted", "adjusted_us", "parts"),
    ]
    assert (report["workers"], report["policy"], report["mix"]) == (3, "least-loaded", "explore")
    assert 3900 <= report["blocks"] <= 4000  # grown to the last request that surely fitted
    assert (report["adjusted"], report["adjusted_us"], report["parts"]) == (0, None, [])
    for name in ("decide_us", "hash_us", "finish_us", "stored_us", "removed_us"):
        assert list(report[name]) == ["p50", "p99", "mean"]
        assert 0 < report[name]["p50"] <= report[name]["p99"]
    assert report["hash_us"]["p50"] < report["decide_us"]["p50"]  # hashing is a part of it
    whole = report["decide_us"]["mean"] + report["finish_us"]["mean"]
    assert report["per_s"] == pytest.approx(1e6 / whole, rel=0.01)


def test_without_json_it_says_one_line() -> None:
    done = bench(*SMALL)
    assert done.returncode == 0
    assert done.stdout.startswith("e2, 3 workers, 39")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--policy", "best"), 1, "policy 'best' is unknown"),
        (("--prompt-tokens", "10"), 1, "blocks of 64 tokens, prompts of 10"),
        (("--blocks", "5"), 1, "5 blocks of 64 tokens"),
        (("--workers", "0"), 2, "0: must be at least 1"),
        (("--mix", "some"), 2, "'some'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(args: tuple[str, ...], code: int, told: str) -> None:
    done = bench(*args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert told in done.stderr


@pytest.mark.parametrize(("mix", "least", "most"), [("exploit", 0.5, 1.0), ("explore", 0.0, 0.5), ("both", 0.0, 1.0)])
def test_a_mix_is_one_of_prompts_that_share_much_or_little(mix: Mix, least: float, most: float) -> None:
    prompts = Prompts(640, seed=1)
    drawn = prompts.draw(300, mix)
    assert {len(prompt) for prompt in drawn} == {4 * 640}
    firsts = [prompt[:64] for prompt in drawn]
    shared = []
    for prompt in drawn:
        others = [other for other in drawn if other[:64] == prompt[:64] and other is not prompt]
        if others:
            common = next(i for i, (a, b) in enumerate(zip(prompt, others[0], strict=True)) if a != b)
            shared.append(common / len(prompt))
    assert len(set(firsts)) < 200  # prefixes are shared at all
    assert least <= min(shared)
    assert max(shared) <= most + 0.01  # a random token may agree by chance
    assert Prompts(640, seed=1).draw(300, mix) == drawn
    assert Prompts(640, seed=2).draw(300, mix) != drawn


def test_growing_is_told() -> None:
    told: list[str] = []
    measure(policy="e2", workers=2, prompt_tokens=640, block_tokens=16, blocks=2000, decisions=1, tell=told.append)
    assert told[0] == "0 of 2000 blocks"
    assert len(told) > 3


def test_the_parts_of_a_decision_add_up() -> None:
    choose = E2.choose
    report = measure(
        policy="e2", workers=2, prompt_tokens=640, block_tokens=16, blocks=2000, decisions=250, profile=True
    )
    assert E2.choose is choose  # the clocks are off again
    assert {"hash", "match", "choose", "book in the tree", "book in the loads", "journal", "rest"} <= {
        one.part for one in report.parts
    }
    assert sum(one.share for one in report.parts) == pytest.approx(1, abs=0.01)
    assert all(one.p50 > 0 and one.share > 0 for one in report.parts)
    _, header, *rows = bench(*SMALL, "--profile").stdout.splitlines()
    assert header.split() == ["PART", "P50", "US", "SHARE"]
    assert any(row.startswith("hash ") for row in rows)


def test_many_in_flight_on_few_prefixes_are_adjusted() -> None:
    report = measure(
        policy="e2",
        workers=4,
        prompt_tokens=640,
        block_tokens=16,
        blocks=4000,
        decisions=500,
        mix="exploit",
        in_flight=40,
    )
    assert report.adjusted > 0
    assert report.adjusted_us is not None
    assert report.adjusted_us.p50 > 0


def test_a_tree_too_small_for_a_prompt_is_refused() -> None:
    with pytest.raises(SettingsError, match="10 blocks"):
        measure(policy="e2", workers=2, prompt_tokens=640, block_tokens=16, blocks=10)
