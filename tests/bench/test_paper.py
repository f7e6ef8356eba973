"""`prebled bench paper`: the published set-ups, the rates that are matched to them, the page and the command."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from lab_outcomes import outcome

from prebled.bench import paper_setups
from prebled.bench.generators import parse_workload
from prebled.bench.lab.crew import Crew, Notebook
from prebled.bench.lab.runs import Outcome, Run
from prebled.bench.paper import Comparison, Trial, compare
from prebled.bench.paper_page import page
from prebled.bench.paper_setups import SETUPS, Latency, Machines, PaperSetup
from prebled.cli import main

SMALL = PaperSetup(
    Machines("1 GPU, a model", "mistral-7b-a6000", 1),
    "toolbench",
    8.0,
    preble=Latency(2.0, 5.0),
    partition=Latency(3.0, 6.0),
    round_robin=Latency(10.0, 20.0),
)


class QueueingCrew(Crew):
    """Knows without replaying: round robin's mean latency is the rate, the paper's E2 half and ours a fifth of it."""

    def __init__(self, folder: Path, slowest: float = 0.0) -> None:
        super().__init__(Notebook(folder), 1, lambda found: None)
        self._slowest = slowest

    def run(self, run: Run) -> Outcome:
        rate = parse_workload(run.case.source).rate
        share = {"round-robin": 1.0, "e2-paper": 0.5, "e2": 0.2}[run.setup.policy]
        return outcome(run.setup.policy, e2e=max(rate * share, self._slowest), rate=rate, workers=run.workers)


def test_the_setups_are_those_of_the_evaluation() -> None:
    workers = {setup.machines.name: setup.machines.workers for setup in SETUPS}
    assert workers == {"2 A6000, Mistral-7B": 2, "4 A6000, Mistral-7B": 4, "8 H100, Llama-3-70B": 2}
    assert len({(setup.machines.name, setup.workload, setup.rate) for setup in SETUPS}) == len(SETUPS) == 17
    for setup in SETUPS:
        for latency in (setup.preble, setup.partition, setup.round_robin):
            assert 0 < latency.mean < latency.p99


def test_a_source_has_the_rate_and_its_requests_and_the_tool_lists() -> None:
    toolbench = parse_workload(SETUPS[0].source(9.0))
    assert (toolbench.name, toolbench.rate, toolbench.requests, toolbench.groups) == ("toolbench", 9.0, 2700, 200)
    for setup in SETUPS:
        workload = parse_workload(setup.source(0.001))
        assert (workload.name, workload.requests) == (setup.workload, 1)
        assert workload.groups == (100 * setup.machines.workers if setup.workload == "toolbench" else None)


def test_the_rate_is_matched_to_the_published_latency(tmp_path: Path) -> None:
    (found,) = compare(QueueingCrew(tmp_path), [SMALL], seed=0)
    assert found.as_published.rate == 8.0
    assert found.as_published.e2.e2e_mean == pytest.approx(1.6)
    assert found.roomy.rate == 8.0
    assert found.matched is not None
    assert 10.0 / 1.03 < found.matched.rate <= 10.0
    assert found.matched.round_robin.e2e_mean == found.matched.rate
    assert found.matched.e2_paper.e2e_mean == pytest.approx(found.matched.rate / 2)


def test_where_the_engine_is_always_slower_no_rate_is_matched(tmp_path: Path) -> None:
    (found,) = compare(QueueingCrew(tmp_path, slowest=11.0), [SMALL], seed=0)
    assert found.matched is None
    text = page([found], 0, "a machine")
    assert "| 1 GPU, a model | toolbench | 8 | 10 / 20 | 2 / 5 | 11 / 33 |" in text
    assert text.count("| 1 GPU, a model |") == 2
    assert "in 0 of 1 set-ups that takes more than 0.1 of e2-paper's hit ratio." in text.lower()


def test_the_page_holds_ours_against_the_published() -> None:
    def trial(rate: float, e2e: float) -> Trial:
        return Trial(rate, outcome(e2e=e2e, ttft=0.5), outcome(e2e=e2e / 2), outcome(e2e=e2e / 4))

    def hits(trial: Trial, ratio: float) -> Trial:
        return msgspec.structs.replace(trial, e2_paper=msgspec.structs.replace(trial.e2_paper, hit_ratio=ratio))

    found = Comparison(SMALL, hits(trial(8.0, 4.0), 0.5), hits(trial(8.0, 3.0), 0.75), trial(16.0, 10.0))
    text = page([found], 3, "a machine")
    assert "| 8 | 2 / 5 | 3 / 9 | 1.5 / 4.5 | 0.75 / 2.25 | 5.00 | 2.00 | 4.00 | 0.50 of 0.75 |" in text
    assert "In 1 of 1 set-ups that takes more than 0.1 of e2-paper's hit ratio: toolbench at 8/s" in text
    assert "There its mean latency is 1.00 times the published one of Preble, and 0.75 times with caches" in text
    assert "Made by `prebled bench paper --seed 3` on a machine." in text
    assert "| 8 | 10 / 20 | 2 / 5 | 4 / 12 | 2 / 6 | 1 / 3 | 5.00 | 2.00 | 4.00 |" in text
    assert "| toolbench | 2.00 | 10 / 20 | 10 / 30 | 5.00 | 2.00 | 4.00 | 4.00 | 2.00 | 4.00 |" in text
    assert "our round robin has 0.40 to 0.40 times the published mean latency" in text
    assert "in 1 of 1 set-ups its mean TTFT is below 1 s" in text
    assert "toolbench 2.00 to 2.00; geometric mean 2.00" in text
    assert "e2-paper gains less than 1/1.5 of what was published in: toolbench at 8/s on 1 GPU, a model." in text


def test_the_command_replays_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paper_setups, "SETUPS", (SMALL,))
    monkeypatch.setattr(paper_setups, "RUN_S", 5)
    arguments = ["bench", "paper", "--processes", "1", "--seed", "2", "--notebook", str(tmp_path / "notebook")]
    out = tmp_path / "results" / "paper.md"
    assert main([*arguments, "--out", str(out), "--json", "-"]) == 0
    (found,) = msgspec.convert(json.loads(capsys.readouterr().out), list[Comparison])
    assert (found.setup, found.as_published.round_robin.requests) == (SMALL, 40)
    assert found.as_published.e2.failed == 0
    assert found.roomy.e2.hit_ratio >= found.as_published.e2.hit_ratio
    assert "--seed 2" in out.read_text()
    assert main([*arguments, "--out", str(out), "--json", str(tmp_path / "paper.json")]) == 0
    assert msgspec.json.decode((tmp_path / "paper.json").read_bytes(), type=list[Comparison]) == [found]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "chess"], "workload 'chess' is unknown; known are toolbench, embodied, "),
        (["--seed", "-1"], "--seed is -1, must not be negative"),
        (["--processes", "0"], "--processes is 0, must be at least 1"),
    ],
)
def test_bad_usage_names_the_value(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path / "paper.md"), "--notebook", str(tmp_path / "notebook")]
    assert main(["bench", "paper", *arguments, *places]) != 0
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
