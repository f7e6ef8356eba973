"""The unit files: valid to systemd itself, and saying what the design needs them to say."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"
DAEMON, WORKER = "prebled.service", "prebled-worker@.service"
BINARY = "/usr/bin/prebled"


def settings_of(unit: str) -> dict[str, list[str]]:
    """All settings of a unit, whatever their section."""
    settings: dict[str, list[str]] = defaultdict(list)
    for line in (UNITS / unit).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[key].append(value)
    return settings


def verify(folder: Path, *units: str) -> str:
    """What systemd-analyze says of these; nothing if all is well."""
    command = ["systemd-analyze", "verify", "--man=no", *(str(folder / unit) for unit in units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as installed next to a command that exists: systemd looks whether it can be run, and it is installed on
    this machine under another name, if at all."""
    command = tmp_path / "prebled"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for unit in (DAEMON, WORKER):
        text = (UNITS / unit).read_text()
        assert text.count(f"ExecStart={BINARY} ") == 1
        (tmp_path / unit).write_text(text.replace(BINARY, str(command)))
    return tmp_path


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_systemd
def test_systemd_finds_no_fault(installed: Path) -> None:
    assert verify(installed, DAEMON, WORKER) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "old", "new"),
    [
        (DAEMON, "RestartSec=", "RestartSeconds="),
        (WORKER, "Type=exec", "Type=excec"),
        (WORKER, "/prebled worker", "/no-such-command worker"),
    ],
)
def test_systemd_would_find_a_fault(installed: Path, unit: str, old: str, new: str) -> None:
    text = (installed / unit).read_text()
    assert old in text
    (installed / unit).write_text(text.replace(old, new))
    assert verify(installed, unit) != ""


def test_daemon_and_workers_share_user_and_directories() -> None:
    daemon, worker = settings_of(DAEMON), settings_of(WORKER)
    for key in ("User", "Group", "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"):
        assert daemon[key] == worker[key] != []
    assert daemon["RuntimeDirectoryPreserve"] == ["yes"]
    meeting_place = f"PREBLED_RUNTIME_DIR=%t/{daemon['RuntimeDirectory'][0]}"
    assert meeting_place in daemon["Environment"]
    assert meeting_place in worker["Environment"]
    assert f"u {daemon['User'][0]} " in (UNITS / "prebled.sysusers.conf").read_text()


def test_workers_outlive_the_daemon() -> None:
    worker = settings_of(WORKER)
    ties = ("PartOf", "BindsTo", "Requires", "Requisite", "Upholds", "After", "Before")
    assert not any(DAEMON in value for key in ties for value in worker[key])
    assert settings_of(DAEMON)["ExecStart"][0].endswith("--launcher external")


def test_the_daemon_is_watched_and_tells_when_it_is_ready() -> None:
    daemon = settings_of(DAEMON)
    assert daemon["Type"] == ["notify"]
    assert daemon["NotifyAccess"] == ["main"]
    assert int(daemon["WatchdogSec"][0]) > 0


@pytest.mark.parametrize("unit", [DAEMON, WORKER])
def test_the_commands_are_ones_that_prebled_understands(unit: str, tmp_path: Path) -> None:
    settings = tmp_path / "prebled.toml"
    settings.write_text('no_such_setting = "x"\n')  # so that it gets as far as the settings, and no further
    command = settings_of(unit)["ExecStart"][0].replace("%i", "3").replace("/etc/prebled/prebled.toml", str(settings))
    argv = [sys.executable, "-m", "prebled.cli", *shlex.split(command)[1:]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False)
    assert "no_such_setting" in done.stderr
    assert done.returncode == int(settings_of(unit)["RestartPreventExitStatus"][0])
