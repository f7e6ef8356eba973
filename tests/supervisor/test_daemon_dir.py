"""The runtime directory: who may have it, who has it, and what is written down there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prebled.core.types import WorkerId
from prebled.daemon.runtime_dir import RuntimeDir, WorkerRecord
from prebled.errors import SettingsError

W0 = WorkerId("w0")

HOLDER = """
import sys, time
from pathlib import Path
from prebled.daemon.runtime_dir import RuntimeDir
directory = RuntimeDir(Path(sys.argv[1]))
directory.lock()
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def directory(tmp_path: Path) -> RuntimeDir:
    directory = RuntimeDir(tmp_path / "a" / "run")
    directory.create()
    return directory


def test_it_is_made_for_us_alone(directory: RuntimeDir) -> None:
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.workers.stat().st_mode & 0o777 == 0o700
    directory.create()  # again, as a restarted daemon does


def test_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    RuntimeDir(tmp_path).create()
    assert tmp_path.stat().st_mode & 0o777 == 0o750


def test_one_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SettingsError, match=str(tmp_path)):
        RuntimeDir(tmp_path).create()


def test_one_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(SettingsError, match=f"belongs to user {owner}"):
        RuntimeDir(tmp_path).create()


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="file"):
        RuntimeDir(tmp_path / "file").create()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(directory: RuntimeDir) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, directory.path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(SettingsError, match=f"pid {holder.pid}$"):
            directory.lock()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    directory.lock()  # the lock of a killed daemon is free
    assert (directory.path / "daemon.lock").read_text() == f"{os.getpid()}\n"
    directory.close()
    directory.close()


def test_the_lock_is_not_inherited(directory: RuntimeDir) -> None:
    directory.lock()
    code = "import time; print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], close_fds=False, stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"up\n"
        directory.close()
        RuntimeDir(directory.path).lock()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_records_are_read_as_written(directory: RuntimeDir) -> None:
    record = WorkerRecord(W0, 17, 4711, ("prebled", "worker", "--id", "w0"))
    directory.write_record(record)
    other = WorkerRecord(WorkerId("w1"), 18, 4712, ("x",))
    directory.write_record(other)
    directory.write_record(other)
    assert directory.read_records() == [record, other]
    directory.remove_record(W0)
    directory.remove_record(W0)
    assert directory.read_records() == [other]


def test_files_that_are_no_records_are_passed_over(directory: RuntimeDir) -> None:
    (directory.workers / "w1.json").write_text('{"worker_id": "w1"}')
    (directory.workers / "w2.json").write_bytes(b"\xff\0")
    (directory.workers / "w3.json").write_text('{"worker_id": "w4", "pid": 1, "started": 1, "argv": []}')
    (directory.workers / "w5.json").mkdir()
    assert directory.read_records() == []
