"""Settings: what wins over what, and what is refused how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prebled import settings_load
from prebled.errors import SettingsError
from prebled.settings import Settings
from prebled.settings_load import default_files, load_settings, load_with_sources


@pytest.fixture(autouse=True)
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_load, "SYSTEM_FILE", tmp_path / "system.toml")


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.conf"
    path.write_text(text)
    return path


def _load(file: Path | None = None, env: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    return load_settings(file, {"HOME": "/nonexistent", **(env or {})}, flags)


def test_nothing_given_is_the_defaults() -> None:
    assert _load() == Settings()


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "prebled").mkdir(parents=True)
    settings_load.SYSTEM_FILE.write_text("workers = 1\ntp = 1\nblock_tokens = 16\nkv_tokens = 100")
    (home / "prebled" / "config.toml").write_text("workers = 2\ntp = 2\nblock_tokens = 32")
    env = {"XDG_CONFIG_HOME": str(home), "PREBLED_WORKERS": "3", "PREBLED_TP": "3"}
    loaded = load_with_sources(None, env, {"workers": "4", "model": None})
    settings = loaded.settings
    assert (settings.workers, settings.tp, settings.block_tokens, settings.kv_tokens) == (4, 3, 32, 100)
    sources = {value.key: value.source for value in loaded.values}
    assert sources["workers"] == "--workers"
    assert sources["tp"] == "PREBLED_TP"
    assert sources["block_tokens"] == str(home / "prebled" / "config.toml")
    assert sources["kv_tokens"] == str(settings_load.SYSTEM_FILE)
    assert sources["model"] == "default"
    assert loaded.files == (settings_load.SYSTEM_FILE, home / "prebled" / "config.toml")


def test_a_named_file_is_the_only_one(tmp_path: Path) -> None:
    settings_load.SYSTEM_FILE.write_text("workers = 7")
    assert _load(_file(tmp_path, "tp = 2")).workers == 0


def test_user_file_without_xdg_is_under_home() -> None:
    assert default_files({"HOME": "/home/a"})[1] == Path("/home/a/.config/prebled/config.toml")


def test_tables_lists_and_what_is_passed_through(tmp_path: Path) -> None:
    text = (
        'http = ["[::1]:80", "unix:/x"]\n[limits]\nmax_waiting = 9\n[sim]\nspeed = 2\n[sglang]\nattention_backend = "x"'
    )
    env = {
        "PREBLED_LISTEN": "unix:/a, tcp:0.0.0.0:1",
        "PREBLED_FABRIC__BEAT_S": "0.25",
        "PREBLED_SGLANG__MEM_FRACTION_STATIC": "0.8",
        "PREBLED_SGLANG__ENABLE_X": "true",
    }
    settings = _load(_file(tmp_path, text), env)
    assert settings.http == ("[::1]:80", "unix:/x")
    assert settings.listen == ("unix:/a", "tcp:0.0.0.0:1")
    assert (settings.limits.max_waiting, settings.sim.speed, settings.fabric.beat_s) == (9, 2.0, 0.25)
    assert settings.sglang == {"attention_backend": "x", "mem_fraction_static": 0.8, "enable_x": True}


def test_an_empty_list_closes_a_door() -> None:
    assert _load(env={"PREBLED_HTTP": ""}).http == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("wrokers = 2", ["wrokers", "given.conf", "did you mean workers?"]),
        ("[limits]\nmax_wating = 2", ["limits.max_wating", "given.conf", "limits.max_waiting"]),
        ("[limit]\nmax_waiting = 2", ["limit", "given.conf"]),
        ("limits = 3", ["limits = 3", "given.conf", "table"]),
        ('workers = "2"', ["workers = '2'", "given.conf", "int"]),
        ("workers = true", ["workers = True", "given.conf"]),
        ("workers = -1", ["workers = -1", "given.conf", ">= 0"]),
        ("block_tokens = 0", ["block_tokens = 0", ">= 1"]),
        ("[fabric]\nbeat_s = nan", ["fabric.beat_s = nan"]),
        ("[fabric]\nbeat_s = 9", ["fabric.beat_s = 9.0", "fabric.lost_after_s = 5.0 (default)"]),
        ('http = "127.0.0.1:80"', ["http = '127.0.0.1:80'", "given.conf"]),
        ('http = ["127.0.0.1:99999"]', ["99999", "given.conf"]),
        ('listen = ["127.0.0.1:80"]', ["127.0.0.1:80", "listen"]),
        ('fabric_address = "tcp:localhost"', ["tcp:localhost", "fabric_address"]),
        ('engine = "abacus"', ["abacus", "sglang, sim"]),
        ('launcher = "magic"', ["magic", "local, external"]),
        ('log = "xml"', ["xml", "json, console"]),
        ('policy = "guess"', ["guess", "e2"]),
        ("[sglang]\nx = [1]", ["sglang.x = [1]"]),
        ("workers = two", ["given.conf", "line 1"]),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(_file(tmp_path, text))
    for part in named:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"PREBLED_WROKERS": "2"}, ["PREBLED_WROKERS", "did you mean PREBLED_WORKERS?"]),
        ({"PREBLED_LIMITS__WAITING": "2"}, ["PREBLED_LIMITS__WAITING", "PREBLED_LIMITS__MAX_WAITING"]),
        ({"PREBLED_WORKERS": "two"}, ["workers = 'two'", "PREBLED_WORKERS", "int"]),
        ({"PREBLED_WORKERS": ""}, ["workers = ''", "PREBLED_WORKERS"]),
        ({"PREBLED_DRAIN_TIMEOUT_S": "-1"}, ["drain_timeout_s = '-1'", ">= 0"]),
    ],
)
def test_what_the_environment_may_not_say(env: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(env=env)
    for part in named:
        assert part in str(caught.value)


def test_a_bad_flag_is_named_as_it_is_written() -> None:
    with pytest.raises(SettingsError, match=r"block_tokens = '0' \(--block-tokens\): Expected int >= 1"):
        _load(block_tokens="0")


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.toml: No such file"):
        _load(tmp_path / "nothing.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'model = "\xe9"')
    with pytest.raises(SettingsError, match=r"latin\.toml: 'utf-8'"):
        _load(latin)


def test_every_setting_can_be_given_its_own_default_in_every_way(tmp_path: Path) -> None:
    values = {v.key: v.value for v in load_with_sources(None, {"HOME": "/nonexistent"}, {}).values}
    assert len(values) > 40
    env = {
        f"PREBLED_{k.upper().replace('.', '__')}": ",".join(v) if isinstance(v, tuple) else str(v)
        for k, v in values.items()
    }
    assert _load(env=env) == Settings()
    tree: dict[str, Any] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        (tree.setdefault(table, {}) if table else tree)[name] = value
    toml = "\n".join(f"{k} = {msgspec.json.encode(v).decode()}" for k, v in tree.items() if not isinstance(v, dict))
    for table, content in tree.items():
        if isinstance(content, dict):
            toml += f"\n[{table}]\n" + "\n".join(f"{k} = {msgspec.json.encode(v).decode()}" for k, v in content.items())
    assert _load(_file(tmp_path, toml)) == Settings()
