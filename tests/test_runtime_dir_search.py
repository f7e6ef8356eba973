"""Where a daemon keeps its sockets, and where clients and workers look for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prebled import runtime_dir
from prebled.runtime_dir import FABRIC_NAME, daemon_runtime_dir, find_socket, user_runtime_dir


def test_the_daemons_directory() -> None:
    env = {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/5"}
    assert daemon_runtime_dir("/set", env, 5) == Path("/set")
    assert daemon_runtime_dir("", env, 5) == Path("/run/a")
    assert daemon_runtime_dir("", {"XDG_RUNTIME_DIR": "/run/user/5"}, 5) == Path("/run/user/5/prebled")
    assert daemon_runtime_dir("", {}, 5) == Path("/tmp/prebled-5")
    assert user_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/0"}, 0) == Path("/run/prebled")


def test_who_names_no_daemon_means_the_configured_then_the_own_then_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, own = tmp_path / "system", tmp_path / "user" / "prebled"
    system.mkdir()
    own.mkdir(parents=True)
    monkeypatch.setattr(runtime_dir, "SYSTEM_DIR", system)
    monkeypatch.setattr(os, "getuid", lambda: 5)
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "user")}
    assert find_socket(env) == f"unix:{own}/prebled.sock"
    (system / "prebled.sock").symlink_to(system / "prebled.sock")  # like a folder we may not look into: stat() fails
    assert find_socket(env) == f"unix:{system}/prebled.sock"
    (own / "prebled.sock").touch()
    assert find_socket(env) == f"unix:{own}/prebled.sock"
    assert find_socket({**env, "PREBLED_RUNTIME_DIR": "/set"}, FABRIC_NAME) == "unix:/set/fabric.sock"
    assert find_socket(env, FABRIC_NAME, "/told") == "unix:/told/fabric.sock"
