"""Finds a model's tokenizer and configuration files and reads what the daemon, and a simulated worker, need of them.

A model is a local folder in Hugging Face's layout, or a name on its hub, of which only the small files are fetched.
The rule: whatever is wrong with a model's files is a `SettingsError` that names the file, before anything is served.
Not known here: weights, and how tokens are made (`tokenizing`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from prebled.errors import SettingsError

_WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_HUB_TIMEOUT_S = 10.0
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Json = dict[str, Any]


class ModelFiles(msgspec.Struct, frozen=True):
    """What a model's files say.

    `eos_token_ids`: those of config.json and generation_config.json; the tokenizer's own is `special_tokens`'
    `eos_token`. `special_tokens` maps `bos_token`, `eos_token`, ... to their texts. `add_bos_token` and `add_eos_token`
    None: tokenizer.json alone decides what surrounds a text. `vocab_size` and `context_tokens` 0: not stated.
    """

    folder: Path
    tokenizer_path: Path
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...] = ()
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    chat_template: str | None = None
    vocab_size: int = 0
    context_tokens: int = 0


def load_model_files(model: str) -> ModelFiles:
    """Read the files of a folder or hub name. Blocks on the disk, and on the network for a hub name that is not in the
    local cache. Raises SettingsError."""
    folder = find_model_folder(model)
    tokenizer_path = folder / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise SettingsError(
            f"model {model!r}: no tokenizer.json in {folder}; a model without a fast tokenizer is not served"
        )
    config = read_model_config(folder)
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    named = read_json(folder / "special_tokens_map.json") | tokenizer_config
    return ModelFiles(
        folder=folder,
        tokenizer_path=tokenizer_path,
        special_tokens={key: text for key in _NAMED_TOKENS if (text := _token_text(named.get(key)))},
        eos_token_ids=config.eos_token_ids,
        add_bos_token=_flag(tokenizer_config.get("add_bos_token")),
        add_eos_token=_flag(tokenizer_config.get("add_eos_token")),
        chat_template=_chat_template(folder, tokenizer_config),
        vocab_size=config.vocab_size,
        context_tokens=config.context_tokens,
    )


class ModelConfig(msgspec.Struct, frozen=True):
    """What config.json and generation_config.json say; 0: not stated."""

    vocab_size: int
    context_tokens: int
    eos_token_ids: tuple[int, ...]


def read_model_config(folder: Path) -> ModelConfig:
    """Read the two files, as far as they are there. Raises SettingsError."""
    config = read_json(folder / "config.json")
    nested = config.get("text_config")
    text_config: Json = nested if isinstance(nested, dict) else config
    eos_ids = _ids(read_json(folder / "generation_config.json")) | _ids(config) | _ids(text_config)
    return ModelConfig(
        vocab_size=_count(text_config.get("vocab_size")),
        context_tokens=_count(text_config.get("max_position_embeddings")),
        eos_token_ids=tuple(sorted(eos_ids)),
    )


def find_model_folder(model: str) -> Path:
    """The folder with the model's files. Raises SettingsError if there is none."""
    if not model:
        raise SettingsError("no model was named: a folder or a hub name is wanted")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise SettingsError(f"model {model!r} is a file; a folder or a hub name is wanted")
    if model.startswith((".", "~")) or not _HUB_NAME.fullmatch(model):
        raise SettingsError(f"model folder {model!r} does not exist")
    return _download(model)


def _download(model: str) -> Path:
    # Imported here: it takes a third of a second, and a local folder needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=list(_WANTED), etag_timeout=_HUB_TIMEOUT_S))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingsError(f"model {model!r}: no such folder, and not to be had from the hub: {reason}") from error


def read_json(path: Path) -> Json:
    """The object in the file; empty if there is no such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(content, type=Json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _ids(config: Json) -> set[int]:
    value = config.get("eos_token_id")
    given = value if isinstance(value, list) else [value]
    return {token for token in given if isinstance(token, int) and token >= 0}


def _token_text(value: object) -> str:
    """A special token is given as its text, or as an object with the text in `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _chat_template(folder: Path, tokenizer_config: Json) -> str | None:
    """A file of its own wins over tokenizer_config.json's entry, as in transformers; of a list, the one named
    `default`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: {error}") from error
    for given in (tokenizer_config, read_json(folder / "chat_template.json")):
        template = given.get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None
