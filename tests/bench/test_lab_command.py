"""`prebled bench lab` from end to end, on a few requests: page, plots, bad usage, and an interrupted lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from lab_outcomes import outcome, result

from prebled.bench.lab import plots
from prebled.cli import main

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--only", "toolbench", "--limit", "40", "--workers", "2", "--processes", "1"]


class Lab:
    """One lab, its results kept."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "results"
        self.notebook = folder / "notebook"
        self.arguments = ["bench", "lab", *SMALL, "--policies", "round-robin", "--seeds", "0", "1"]
        self.arguments += ["--out", str(self.out), "--notebook", str(self.notebook)]

    def run(self) -> int:
        return main(self.arguments)

    @property
    def outcomes(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.notebook.iterdir())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    assert lab.run() == 0
    return lab


def test_the_page_compares_the_policies_asked_for(lab: Lab) -> None:
    text = (lab.out / "lab.md").read_text()
    assert (
        "Made by `prebled bench lab --limit 40 --seeds 0 1 --workers 2 --only toolbench --policies round-robin` on"
        in text
    )
    assert "Cuts of 40 requests; seeds 0, 1; 2 workers" in text
    assert "| case | workers | e2 | round-robin | e2 / best rival |" in text
    assert "| load | metric | e2 | round-robin |" in text
    assert text.count("\n| toolbench | 2 |") >= 3  # capacity, goodput, factors
    assert "of 12 comparisons" in text  # three loads, four latencies, each over two seeds
    assert "% for seeds 0, 1 alone" in text
    assert "| seed 1 alone |" in text
    assert "x of round-robin's, the best rival over all cases" in text
    assert "\n| e2 over it |  |  | " in text
    assert (
        "| case | e2 | price 1 | no backlog | no sharing | no decode | no output | no overtaking | fcfs queue |\n"
        in text
    )
    assert str(lab.notebook) not in text


def test_the_plots_are_pictures(lab: Lab) -> None:
    names = sorted(path.name for path in lab.out.iterdir())
    assert names == ["goodput.png", "lab.md", "parts.png", "toolbench.png"]
    for name in ("goodput.png", "parts.png", "toolbench.png"):
        content = (lab.out / name).read_bytes()
        assert content.startswith(PNG)
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert width >= 800
        assert height >= 400
        assert len(content) > 10_000  # an empty canvas of this size takes less


def test_a_second_lab_replays_nothing_and_finds_the_same(lab: Lab) -> None:
    before, page = lab.outcomes, (lab.out / "lab.md").read_text()
    assert lab.run() == 0
    assert lab.outcomes == before
    assert (lab.out / "lab.md").read_text() == page


def test_one_worker_count_has_one_row_of_panels_two_have_two(tmp_path: Path) -> None:
    at = {"e2": outcome(), "round-robin": outcome("round-robin", ttft=2.0)}
    one, two = result({0.5: at}, case="a"), [result({0.5: at}, case="b", workers=workers) for workers in (4, 8)]
    paths = plots.draw([one, *two], tmp_path)
    assert [path.name for path in paths] == ["a.png", "b.png", "goodput.png"]
    heights = [int.from_bytes(path.read_bytes()[20:24], "big") for path in paths]
    assert heights[1] > 1.8 * heights[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "chess"], "case 'chess' is unknown; known are toolbench, "),
        (["--policies", "nearest"], "policy 'nearest'"),
        (["--policies", "e2"], "there is nothing to compare it with"),
        (["--traces", "{folder}"], "{folder}: holds none of preble_like/toolbench.jsonl.zst, "),
        (["--workers", "0"], "--workers is 0, must be at least 1"),
        (["--limit", "0"], "--limit is 0, must be at least 1"),
        (["--seeds", "0", "-1"], "--seeds is -1, must be at least 0"),
        (["--processes", "0"], "--processes is 0, must be at least 1"),
        (["--limit", "1", "--only", "toolbench"], "case 'toolbench': no policy keeps up with it at any rate tried"),
    ],
)
def test_bad_usage_names_the_value(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    given = [word.format(folder=folder) for word in arguments]
    places = ["--out", str(tmp_path / "out"), "--notebook", str(tmp_path / "notebook")]
    if "--processes" not in given:
        given += ["--processes", "1"]
    assert main(["bench", "lab", *given, *places]) != 0
    assert complaint.format(folder=folder) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_nothing_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    places = ["--out", str(tmp_path / "out"), "--notebook", str(tmp_path / "notebook")]
    assert main(["bench", "lab", *SMALL, *places]) != 0
    assert "plots need matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_outcomes_and_writes_no_page(tmp_path: Path) -> None:
    out, notebook = tmp_path / "out", tmp_path / "notebook"
    command = [sys.executable, "-m", "prebled.cli", "bench", "lab", "--only", "toolbench", "--limit", "300"]
    command += ["--processes", "1", "--out", str(out), "--notebook", str(notebook)]
    # Tests that run in a shell's background ignore SIGINT, and what they start would too.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed
    ) as process:
        while not any(path.stat().st_size for path in notebook.glob("*.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the lab
        _, complaint = process.communicate()
    assert process.returncode == 130
    assert "interrupted: the outcomes so far are in" in complaint
    assert "Traceback" not in complaint
    assert not out.exists()
