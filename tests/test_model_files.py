"""A model's files: where they are, what they say, and clear words where they are wrong."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from prebled.errors import SettingsError
from prebled.model_files import find_model_folder, load_model_files


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's small files, to spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in tiny_model.glob("*.json"):
        shutil.copy(path, copy)
    return copy


def change(path: Path, **changed: Any) -> None:
    fields = json.loads(path.read_text()) if path.exists() else {}
    fields |= changed
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def test_the_tiny_model(tiny_model: Path) -> None:
    files = load_model_files(str(tiny_model))
    assert files.folder == tiny_model
    assert files.eos_token_ids == (0, 2)
    assert files.special_tokens["eos_token"] == "<|im_end|>"
    assert files.vocab_size == 2048
    assert files.context_tokens == 16384
    assert files.chat_template is not None
    assert "<|im_start|>" in files.chat_template
    assert files.add_bos_token is False
    assert files.add_eos_token is None


def test_end_tokens_come_from_all_files(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=5)
    change(folder / "config.json", eos_token_id=None, text_config={"eos_token_id": [7, 9], "vocab_size": 99})
    files = load_model_files(str(folder))
    assert files.eos_token_ids == (5, 7, 9)
    assert files.vocab_size == 99
    (folder / "generation_config.json").unlink()
    assert load_model_files(str(folder)).eos_token_ids == (7, 9)


def test_special_tokens_may_be_objects_and_stand_in_either_file(folder: Path) -> None:
    change(folder / "tokenizer_config.json", bos_token={"content": "<bos>", "lstrip": False}, eos_token=None)
    change(folder / "special_tokens_map.json", eos_token="<eos>", bos_token="<other>")
    special = load_model_files(str(folder)).special_tokens
    assert (special["bos_token"], special["eos_token"]) == ("<bos>", "<eos>")


def test_chat_templates_wherever_they_are(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    change(config, chat_template=[{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}])
    assert load_model_files(str(folder)).chat_template == "D"
    change(config, chat_template=None)
    assert load_model_files(str(folder)).chat_template is None
    change(folder / "chat_template.json", chat_template="J")
    assert load_model_files(str(folder)).chat_template == "J"
    (folder / "chat_template.jinja").write_text("F")
    assert load_model_files(str(folder)).chat_template == "F"


def test_no_fast_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"no tokenizer\.json in .*without a fast tokenizer"):
        load_model_files(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b'{"a": ', b"[1]", b"\xff\xfe"])
def test_a_broken_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(SettingsError, match=name):
        load_model_files(str(folder))


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "~/missing/model", "a/b/c", "with space", ""])
def test_a_missing_folder_is_named_at_once(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prebled.model_files._download", lambda model: pytest.fail("asked the hub"))
    began = time.perf_counter()
    with pytest.raises(SettingsError) as caught:
        find_model_folder(model)
    assert model in caught.value.message
    assert time.perf_counter() - began < 1.0


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.touch()
    with pytest.raises(SettingsError, match=r"weights\.gguf.* is a file"):
        find_model_folder(str(path))


def test_a_hub_name_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> str:
        raise FileNotFoundError(f"cannot find {name}\nsecond line of advice")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(SettingsError, match=r"'no-such-org/no-such-model'.*cannot find") as caught:
        load_model_files("no-such-org/no-such-model")
    assert "second line" not in caught.value.message


def test_of_a_hub_model_only_the_small_files_are_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_model_files("org/name").folder == folder
    assert asked["name"] == "org/name"
    assert not [pattern for pattern in asked["allow_patterns"] if "safetensors" in pattern or "*" in pattern]
    assert "tokenizer.json" in asked["allow_patterns"]
