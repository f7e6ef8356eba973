"""Following worker output: what comes into the daemon's log, and what the bounds leave out."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from prebled.daemon.worker_logs import LINE_BYTES, LINES_IN_RESERVE, LINES_PER_S, WorkerLogs


class Output:
    """A worker's end of its log file, opened as the supervisor does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, text: str) -> None:
        os.write(self.file, text.encode())


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    output = Output(tmp_path / "w0.log")
    yield output
    os.close(output.file)


def poll(logs: WorkerLogs, now: float = 0.0) -> list[dict[str, object]]:
    with capture_logs() as told:
        logs.poll(now)
    return [dict(line) for line in told]


def test_plain_lines_are_told_with_the_worker(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    output.write("loading weights\nCUDA error: sad\n")
    assert poll(logs) == [
        {"event": "loading weights", "log_level": "info", "worker": "w0"},
        {"event": "CUDA error: sad", "log_level": "info", "worker": "w0"},
    ]
    assert poll(logs) == []


def test_our_own_lines_keep_level_and_values(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    line = {"event": "engine slow", "level": "warning", "step_s": 1.5, "worker": "x", "timestamp": "t", "self": 1}
    output.write(json.dumps(line) + "\n")
    assert poll(logs) == [{"event": "engine slow", "log_level": "warning", "worker": "w0", "step_s": 1.5}]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ('{"event": "x", "level": "silly"}', "info"),
        ('{"event": "x", "level": ["error"]}', "info"),
        ('{"event": "x"}', "info"),
        ('{"event": "x", "level": "error"}', "error"),
    ],
)
def test_a_level_that_is_none_is_info(tmp_path: Path, output: Output, line: str, level: str) -> None:
    logs = WorkerLogs(tmp_path)
    output.write(line + "\n")
    assert poll(logs) == [{"event": "x", "log_level": level, "worker": "w0"}]


@pytest.mark.parametrize("line", ["{}", "[1]", '{"event": 3}', '{"event": "x"', "null", "%s %d"])
def test_other_json_is_a_plain_line(tmp_path: Path, output: Output, line: str) -> None:
    logs = WorkerLogs(tmp_path)
    output.write(line + "\n")
    assert [told["event"] for told in poll(logs)] == [line]


def test_a_line_is_told_once_it_is_whole(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    output.write("first ha")
    assert poll(logs) == []
    output.write("lf\nsecond\r50%\r100%\n")
    assert [told["event"] for told in poll(logs)] == ["first half", "second", "50%", "100%"]


def test_bytes_that_are_no_text_are_told_all_the_same(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    os.write(output.file, b"caf\xff\n")
    assert [told["event"] for told in poll(logs)] == ["caf\N{REPLACEMENT CHARACTER}"]


def test_what_was_there_before_is_not_told_but_new_files_are(tmp_path: Path, output: Output) -> None:
    output.write("of an earlier daemon\n")
    logs = WorkerLogs(tmp_path)
    output.write("news\n")
    (tmp_path / "w1.log").write_text("from the start\n")
    assert [(told["worker"], told["event"]) for told in poll(logs)] == [("w0", "news"), ("w1", "from the start")]


def test_an_endless_line_is_cut(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    for _ in range(4):
        output.write("x" * LINE_BYTES)
        assert poll(logs) == []
    output.write("\nshort\n")
    long, short = poll(logs)
    assert long["event"] == "x" * LINE_BYTES + " ..."
    assert short["event"] == "short"


def test_a_flood_is_thinned_and_the_loss_told(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    most = int(LINES_IN_RESERVE)
    output.write("flood\n" * (most + 50))
    assert len(poll(logs, now=0.0)) == most
    output.write("later\n")
    told = poll(logs, now=1.5 / LINES_PER_S)
    assert told == [
        {"event": "worker log lines left out", "log_level": "warning", "worker": "w0", "lines": 50},
        {"event": "later", "log_level": "info", "worker": "w0"},
    ]


def test_a_grown_file_is_emptied_and_the_worker_writes_on(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path, file_bytes=100)
    output.write("x" * 98 + "\n")
    assert len(poll(logs)) == 1
    assert output.path.stat().st_size == 99
    output.write("y\n")
    assert len(poll(logs)) == 1
    assert output.path.stat().st_size == 0
    output.write("after\n")
    assert output.path.stat().st_size == 6
    assert [told["event"] for told in poll(logs)] == ["after"]


def test_a_file_that_another_has_truncated_is_read_from_its_start(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    output.write("a long line\n")
    poll(logs)
    os.truncate(output.path, 0)
    output.write("new\n")
    assert [told["event"] for told in poll(logs)] == ["new"]


def test_a_removed_file_harms_nobody(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    output.path.unlink()
    (tmp_path / "w1.log").write_text("alive\n")
    assert [told["event"] for told in poll(logs)] == ["alive"]


async def test_it_follows_until_cancelled_and_tells_the_last_words(tmp_path: Path, output: Output) -> None:
    logs = WorkerLogs(tmp_path)
    with capture_logs() as told:
        task = asyncio.ensure_future(logs.run())
        output.write("first\n")
        async with asyncio.timeout(5):
            while not told:  # noqa: ASYNC110 - the file system tells nobody
                await asyncio.sleep(0.01)
        output.write("last\n")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [line["event"] for line in told] == ["first", "last"]
