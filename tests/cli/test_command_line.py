"""The command line without a daemon: usage, settings, the model verb, and what `start` hands to the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from prebled import __version__, cli
from prebled.errors import SettingsError
from prebled.settings import Settings
from prebled.worker_options import WorkerOptions


def _run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREBLED_")}
    command = [sys.executable, "-m", "prebled.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **env}, timeout=60, check=False)


def test_version_and_help() -> None:
    assert _run("--version").stdout == f"prebled {__version__}\n"
    shown = _run("--help").stdout
    assert all(verb in shown for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    assert f"prebled {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "VERB"),
        (["dance"], "dance"),
        (["status", "--connect", "carrier:pigeon"], "carrier:pigeon"),
        (["status", "--jsn"], "--jsn"),
        (["generate"], "PROMPT"),
        (["generate", "x", "--max-tokens", "many"], "many"),
        (["config", "paint"], "paint"),
        (["start", "--engine", "abacus"], "abacus"),
        (["start", "--policy", "guess"], "guess"),
        (["start", "--workers", "two"], "two"),
        (["start", "--http", "127.0.0.1:99999"], "99999"),
        (["start", "--listen", "127.0.0.1:80"], "127.0.0.1:80"),
        (["start", "--config", "/no/such.toml"], "/no/such.toml"),
        (["worker"], "--id"),
        (["worker", "--id", "w0", "--engine", "sim"], "--model"),
        (["worker", "--id", "", "--model", "m"], "worker id ''"),
        (["worker", "--id", "w0", "--model", "m", "--fabric", "tcp:x"], "tcp:x' (--fabric)"),
    ],
)
def test_bad_usage_is_one_line_that_names_the_value(args: list[str], named: str) -> None:
    done = _run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("prebled: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def _fake_daemon(monkeypatch: pytest.MonkeyPatch, outcome: int | Exception) -> list[Settings]:
    """Put a daemon in place that notes its settings."""
    seen: list[Settings] = []

    def run_daemon(settings: Settings) -> int:
        seen.append(settings)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    module: Any = types.ModuleType("prebled.daemon.main")
    module.run_daemon = run_daemon
    monkeypatch.setitem(sys.modules, "prebled.daemon.main", module)
    monkeypatch.setattr("prebled.logs.configure_logging", lambda *args: None)
    return seen


def test_start_hands_every_flag_to_the_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = _fake_daemon(monkeypatch, 0)
    config = tmp_path / "c.toml"
    config.write_text("workers = 9\nkv_tokens = 1000\n[limits]\nmax_waiting = 5")
    monkeypatch.setenv("PREBLED_KV_TOKENS", "2000")
    args = f"start --config {config} --model m --workers 2 --tp 2 --engine sim --policy e2 --block-tokens 16"
    args += " --served-model-name n --http :1 --http unix:/h --listen unix:/a --listen tcp:b:2 --launcher external"
    args += " --log json --queue-policy fcfs --context-tokens 512"
    assert cli.main(args.replace(":1 ", "localhost:1 ").split()) == 0
    settings = seen[0]
    assert (settings.model, settings.workers, settings.tp, settings.engine) == ("m", 2, 2, "sim")
    assert (settings.policy, settings.block_tokens, settings.kv_tokens) == ("e2", 16, 2000)
    assert (settings.served_model_name, settings.launcher, settings.log) == ("n", "external", "json")
    assert (settings.http, settings.listen) == (("localhost:1", "unix:/h"), ("unix:/a", "tcp:b:2"))
    assert (settings.queue_policy, settings.context_tokens, settings.limits.max_waiting) == ("fcfs", 512, 5)


def test_start_passes_the_daemons_verdict_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_daemon(monkeypatch, 3)
    assert cli.main(["start", "--model", "m"]) == 3
    _fake_daemon(monkeypatch, SettingsError("cannot listen on tcp:0.0.0.0:80:\n in use"))
    assert cli.main(["start", "--model", "m"]) == 1
    assert capsys.readouterr().err == "prebled: cannot listen on tcp:0.0.0.0:80: in use\n"


@pytest.mark.parametrize("flag", ["--fabric", "--connect"])
def test_worker_is_told_every_flag(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[WorkerOptions] = []
    module: Any = types.ModuleType("prebled.worker.main")
    module.run_worker = lambda options: seen.append(options) or 4
    monkeypatch.setitem(sys.modules, "prebled.worker.main", module)
    monkeypatch.setenv("PREBLED_RUNTIME_DIR", "/somewhere")
    monkeypatch.setenv("PREBLED_SGLANG__MEM_FRACTION_STATIC", "0.4")
    args = (
        "worker --id w3 --engine sim --model m --tp 2 --block-tokens 16 --kv-tokens 9 --context-tokens 8 --log console"
    )
    assert cli.main([*args.split(), "--queue-policy", "fcfs"]) == 4
    assert cli.main([*args.split(), flag, "tcp:there:77"]) == 4
    first, second = seen
    assert (first.worker_id, first.engine, first.model, first.tp) == ("w3", "sim", "m", 2)
    assert (first.block_tokens, first.kv_tokens, first.context_tokens) == (16, 9, 8)
    assert (first.queue_policy, first.log, first.sglang) == ("fcfs", "console", {"mem_fraction_static": 0.4})
    assert (first.fabric_address, second.fabric_address) == ("unix:/somewhere/fabric.sock", "tcp:there:77")


def test_config_show_names_every_source(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('http = ["localhost:1", "unix:/x"]\n[sglang]\nmem_fraction_static = 0.5')
    done = _run("config", "show", "--config", str(config), PREBLED_SIM__SPEED="2")
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert rows["http"].split() == ['["localhost:1","unix:/x"]', str(config)]
    assert rows["sim.speed"].split() == ["2.0", "PREBLED_SIM__SPEED"]
    assert rows["sglang.mem_fraction_static"].split() == ["0.5", str(config)]
    assert rows["workers"].split() == ["0", "default"]
    as_json = json.loads(_run("config", "show", "--json", "--config", str(config)).stdout)
    assert as_json["http"] == {"value": ["localhost:1", "unix:/x"], "source": str(config)}


def test_config_check(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("workers = 2")
    done = _run("config", "check", "--config", str(config))
    assert (done.returncode, done.stdout) == (0, f"ok: {config}\n")
    config.write_text("wrokers = 2")
    done = _run("config", "check", "--config", str(config))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"prebled: wrokers ({config}): unknown setting; did you mean workers?\n"


def test_model_tiny(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    done = _run("model", "tiny", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder}\n")
    assert json.loads((folder / "config.json").read_text())["architectures"]
    (tmp_path / "file").write_text("")
    done = _run("model", "tiny", str(tmp_path / "file" / "x"))
    assert done.returncode == 1
    assert done.stderr.startswith("prebled: ")
    assert str(tmp_path / "file") in done.stderr
    assert done.stderr.count("\n") == 1
