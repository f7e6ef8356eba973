"""Workers that were started by somebody else and dial in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_process import DaemonProcess


def _worker(daemon: DaemonProcess, model: str, cwd: Path) -> subprocess.Popen[str]:
    arguments = ["worker", "--id", "w0", "--model", model, "--engine", "sim", "--log", "json"]
    command = [sys.executable, "-m", "prebled.cli", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=daemon.env, stderr=subprocess.PIPE, text=True)


def test_a_worker_of_another_model_is_refused(daemon: DaemonProcess, tmp_path: Path) -> None:
    other = tmp_path / "another-model"
    shutil.copytree(daemon.model, other)
    daemon.start("--launcher", "external")
    daemon.wait(lambda status: True)
    with _worker(daemon, str(other), tmp_path) as worker:
        _, log = worker.communicate(timeout=30)
    assert worker.returncode == 1
    assert f"it serves the model '{other}', the daemon '{daemon.model.resolve()}'" in log
    status = daemon.wait(lambda status: bool(status["workers"]))
    assert not status["ready"]
    assert "worker refused" in daemon.log_path.read_text()


def test_the_same_model_by_a_relative_path_or_in_another_folder_is_welcome(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    daemon.start("--launcher", "external")
    copy = tmp_path / "elsewhere" / daemon.model.resolve().name
    shutil.copytree(daemon.model, copy)
    with _worker(daemon, ".", copy) as worker:
        daemon.wait_ready(1)
        worker.terminate()
        worker.communicate(timeout=30)
    assert worker.returncode == 0


@pytest.mark.parametrize("verb", [["start"], ["worker", "--id", "w0"]])
def test_without_a_model_nothing_serves(verb: list[str]) -> None:
    command = [sys.executable, "-m", "prebled.cli", *verb, "--engine", "sim"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, "prebled: model: none is named; give --model FOLDER or NAME\n")
