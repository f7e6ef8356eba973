"""What the simulated engine needs of a model: how many tokens it has, and which of them end a sequence.

Read from the small files of a folder in Hugging Face's layout, without its tokenizer or weights. Ids beyond the
tokenizer's own (models pad their vocabulary) are left out, since no text belongs to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prebled.errors import SettingsError
from prebled.model_files import find_model_folder, read_json, read_model_config


class SimVocabulary(NamedTuple):
    """Token ids are below `size`."""

    size: int
    eos_token_ids: tuple[int, ...]


NO_MODEL = SimVocabulary(32_000, ())
"""Where no model is named: of Llama 2's size, and nothing ends but by length."""


def read_vocabulary(model: str) -> SimVocabulary:
    """`model`: a folder, a hub name (fetches the small files if they are not in the local cache), or nothing. Raises
    SettingsError that names the file."""
    if not model:
        return NO_MODEL
    folder = find_model_folder(model)
    config = read_model_config(folder)
    sizes = [size for size in (config.vocab_size, _tokenizer_size(folder)) if size]
    if not sizes:
        raise SettingsError(f"model {model!r}: neither config.json nor tokenizer.json in {folder} says how many tokens")
    return SimVocabulary(min(sizes), config.eos_token_ids)


def _tokenizer_size(folder: Path) -> int:
    """One more than the largest id; 0 if there is no tokenizer.json, or none that names ids."""
    tokenizer = read_json(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocab = model.get("vocab", {}) if isinstance(model, dict) else {}
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    added = (token.get("id") for token in tokenizer.get("added_tokens", []) if isinstance(token, dict))
    return 1 + max((token for token in (*ids, *added) if isinstance(token, int)), default=-1)
