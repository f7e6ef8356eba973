"""Results as JSON: to stdout alone, to a file, or nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebled.commands.output import save_json
from prebled.errors import PrebledError


def test_json_on_stdout_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert save_json({"a": [1]}, "-")
    assert capsys.readouterr().out == '{\n  "a": [\n    1\n  ]\n}\n'


def test_json_in_a_file_leaves_stdout_to_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not save_json({"a": 1}, str(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'
    assert not save_json({"a": 1}, None)
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrebledError, match=r"cannot write '.*no/such/a\.json': No such file or directory"):
        save_json({}, str(tmp_path / "no/such/a.json"))
