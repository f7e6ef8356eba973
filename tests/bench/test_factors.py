"""`prebled bench factors`: the rates that are found, what is replayed there, the page and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_outcomes import outcome

from prebled.bench.factors import PRECISION, Factors, Pair, measure, page
from prebled.bench.lab.cases import Case
from prebled.bench.lab.crew import Crew, Notebook
from prebled.bench.lab.runs import Outcome, Run
from prebled.cli import main
from prebled.errors import SettingsError

CASE = Case("made", "workload:toolbench")


class LimitedCrew(Crew):
    """Knows without replaying: round robin carries up to `limit`, at ten requests a second for each of the scale."""

    def __init__(self, folder: Path, limit: float) -> None:
        super().__init__(Notebook(folder), 1, lambda found: None)
        self._limit = limit
        self.whole: list[tuple[str, str, float]] = []

    def try_out(self, run: Run) -> Outcome | None:
        assert (run.setup.policy, run.setup.queue_policy, run.asks) == ("round-robin", "fcfs", "capacity")
        return outcome("round-robin") if run.rate_scale <= self._limit else None

    def run(self, run: Run) -> Outcome:
        assert not run.asks
        self.whole.append((run.setup.policy, run.setup.queue_policy, run.rate_scale))
        return outcome(run.setup.policy, rate=10 * run.rate_scale, rate_scale=run.rate_scale)


def test_both_are_replayed_at_shares_of_what_round_robin_carries(tmp_path: Path) -> None:
    crew = LimitedCrew(tmp_path, 3.0)
    (found,) = measure(crew, [CASE], 4, 0, None)
    assert found.case == "made"
    assert 30 / (1 + PRECISION) < found.capacity <= 30
    scales = [share * found.capacity / 10 for share in (0.5, 0.8, 0.95)]
    assert [scale for policy, queue, scale in crew.whole if (policy, queue) == ("e2", "fcfs")] == pytest.approx(scales)
    assert sorted(crew.whole) == sorted(
        (policy, queue, scale)
        for policy in ("e2", "round-robin")
        for queue in ("fcfs", "groups")
        for scale in {scale for *_, scale in crew.whole}
    )


def test_what_round_robin_cannot_carry_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="case 'made': 4 workers behind round robin keep up with it at no rate"):
        measure(LimitedCrew(tmp_path, 0.0), [CASE], 4, 0, None)


def test_the_page_has_the_factors() -> None:
    def pairs(factor: float) -> list[Pair]:
        ours = outcome("e2", e2e=2.0, hit_ratio=0.8, wall_s=0.05, decide_p99_us=91 + factor)
        return [Pair(outcome("round-robin", e2e=2.0 * share * factor), ours) for share in (1.0, 1.5, 2.0)]

    found = Factors("made", 12.34, {"fcfs": pairs(2.0), "groups": pairs(1.1)})
    text = page([found], 4, "the command", "a machine")
    assert "Made by `the command` on a machine." in text
    assert "| made | 100 | 12.3 | 2.00 | 3.00 | 4.00 | 2.00 | 3.00 | 4.00 | 50% | 80% |" in text
    assert "| made | 100 | 12.3 | 1.10 | 1.65 | 2.20 | 1.10 | 1.65 | 2.20 | 50% | 80% |" in text
    assert text.index("fcfs queues\n") < text.index("priority groups\n")
    assert "at 2,000 to 2,000 requests a second of wall time; the slowest p99 of its decisions was 93 us (made)" in text


def test_the_command_replays_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "results" / "factors.md"
    arguments = ["bench", "factors", "--only", "embodied", "--limit", "60", "--workers", "2", "--processes", "1"]
    assert main([*arguments, "--out", str(out), "--notebook", str(tmp_path / "notebook")]) == 0
    text = out.read_text()
    assert "Made by `prebled bench factors --limit 60 --workers 2 --seed 0 --only embodied` on" in text
    assert text.count("| embodied | 60 |") == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "chess"], "case 'chess' is unknown; known are toolbench, "),
        (["--seed", "-1"], "--seed is -1, must not be negative"),
        (["--workers", "0"], "0"),
        (["--traces", "/nowhere"], "/nowhere: holds none of preble_like/toolbench.jsonl.zst"),
    ],
)
def test_bad_usage_names_the_value(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path / "factors.md"), "--notebook", str(tmp_path / "notebook")]
    try:
        code = main(["bench", "factors", *arguments, *places])
    except SystemExit as refused:
        code = int(refused.code or 0)
    assert code != 0
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
