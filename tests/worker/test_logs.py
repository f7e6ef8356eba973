"""The set-up of logging, in a process of its own since it is global."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from prebled.errors import SettingsError
from prebled.logs import configure_logging

SCRIPT = """
import logging, structlog
from prebled.logs import configure_logging
log = structlog.get_logger()
configure_logging({format!r}, {level!r}, worker="w0")
log.debug("fine print")
log.info("hello", blocks=3)
logging.getLogger("library").warning("from %s", "elsewhere")
logging.getLogger("library").debug("never")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("trouble")
"""


def logged(format: str, level: str) -> tuple[str, list[str]]:
    code = SCRIPT.format(format=format, level=level)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout, done.stderr.splitlines()


def test_json_lines_carry_the_bound_values_and_nothing_goes_to_stdout() -> None:
    stdout, lines = logged("json", "info")
    assert stdout == ""
    entries = [json.loads(line) for line in lines]
    assert [(entry["event"], entry["level"]) for entry in entries] == [
        ("hello", "info"),
        ("from elsewhere", "warning"),
        ("trouble", "error"),
    ]
    assert all(entry["worker"] == "w0" for entry in entries)
    assert entries[0]["blocks"] == 3
    assert entries[1]["logger"] == "library"
    assert "ZeroDivisionError" in entries[2]["exception"]


def test_console_is_for_people_and_levels_hold() -> None:
    _, lines = logged("console", "debug")
    assert "fine print" in lines[0]
    assert "blocks=3" in lines[1]
    assert not any("never" in line for line in lines)
    _, lines = logged("console", "error")
    assert "trouble" in lines[0]


def test_bad_values_are_named() -> None:
    with pytest.raises(SettingsError, match="'xml'"):
        configure_logging("xml")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="'loud'"):
        configure_logging("json", "loud")
