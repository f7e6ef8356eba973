"""What the simulated engine reads of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prebled.errors import SettingsError
from prebled.worker.sim_vocabulary import read_vocabulary

BPE = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 9}, "merges": []}, "added_tokens": [{"id": 12}]}
UNIGRAM = {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}}


@pytest.mark.parametrize(
    ("files", "size", "eos"),
    [
        ({"config.json": {"vocab_size": 100, "eos_token_id": 5}}, 100, (5,)),
        ({"config.json": {"vocab_size": 100, "eos_token_id": None}, "tokenizer.json": BPE}, 13, ()),
        ({"config.json": {"vocab_size": 10}, "tokenizer.json": BPE}, 10, ()),
        ({"tokenizer.json": UNIGRAM}, 2, ()),
        (
            {
                "config.json": {"text_config": {"vocab_size": 50, "eos_token_id": [3, 4]}},
                "generation_config.json": {"eos_token_id": [7, 3]},
            },
            50,
            (3, 4, 7),
        ),
    ],
)
def test_what_the_files_say(tmp_path: Path, files: dict[str, Any], size: int, eos: tuple[int, ...]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_vocabulary(str(tmp_path)) == (size, eos)


def test_without_a_model_there_is_a_vocabulary_all_the_same() -> None:
    assert read_vocabulary("").size > 1000


def test_bad_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no-such"):
        read_vocabulary(str(tmp_path / "no-such"))
    with pytest.raises(SettingsError, match=str(tmp_path)):
        read_vocabulary(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"config\.json"):
        read_vocabulary(str(tmp_path))
