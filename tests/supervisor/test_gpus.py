"""Which GPUs are seen, and how they are shared out."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebled.daemon.gpus import plan_workers, visible_gpus
from prebled.errors import SettingsError


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        ("0,1", ("0", "1")),
        ("3", ("3",)),
        (" GPU-aa , GPU-bb", ("GPU-aa", "GPU-bb")),
        ("", ()),
        ("-1", ()),
        ("1,-1,2", ("1",)),
    ],
)
def test_named_gpus_are_taken_at_their_word(named: str, gpus: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}, tmp_path) == gpus


def test_else_the_driver_is_asked(tmp_path: Path) -> None:
    for bus in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / bus).mkdir()
    assert visible_gpus({}, tmp_path) == ("0", "1")


def fake_smi(folder: Path, script: str) -> dict[str, str]:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return {"PATH": str(folder)}


def test_else_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = fake_smi(tmp_path, 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"; echo "GPU 1: NVIDIA H200 (UUID: GPU-2)"')
    monkeypatch.setenv("PATH", env["PATH"])
    assert visible_gpus(env, tmp_path / "none") == ("0", "1")


def test_a_tool_that_fails_or_is_not_there_means_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({"PATH": str(tmp_path)}, tmp_path / "none") == ()
    env = fake_smi(tmp_path, 'echo "GPU 0: half a word"; exit 9')
    assert visible_gpus(env, tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("workers", "tp", "gpus", "plan"),
    [
        (0, 1, "", ("",)),
        (3, 1, "", ("", "", "")),
        (2, 4, "", ("", "")),
        (0, 1, "0123", ("0", "1", "2", "3")),
        (0, 2, "0123", ("0,1", "2,3")),
        (0, 2, "012", ("0,1",)),
        (1, 2, "4567", ("4,5",)),
    ],
)
def test_gpus_are_shared_out_in_order(workers: int, tp: int, gpus: str, plan: tuple[str, ...]) -> None:
    assert plan_workers(workers, tp, tuple(gpus)) == plan


@pytest.mark.parametrize(
    ("workers", "tp", "gpus", "words"),
    [
        (3, 1, "01", "3 x tp 1 want 3 GPUs, visible are 2"),
        (0, 4, "01", "1 x tp 4"),
        (0, 0, "", "tp 0"),
        (-1, 1, "", "-1"),
    ],
)
def test_impossible_plans_are_refused_by_value(workers: int, tp: int, gpus: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        plan_workers(workers, tp, tuple(gpus))
