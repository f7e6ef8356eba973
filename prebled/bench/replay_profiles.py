"""What a replayed worker is: how long its steps take, and how many tokens its KV cache holds.

Named profiles are those of `core.cost` with the size that belongs to them; `custom:FILE` reads another one (TOML or
JSON: the fields of `CostModel`, in seconds, and `kv_tokens`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from prebled.core.cost import PROFILES, CostModel
from prebled.errors import SettingsError

CUSTOM = "custom:"

KV_TOKENS = {
    "mistral-7b-a6000": 198_516,  # Preble's released code: 80 % of the GPU at 131,072 bytes a token
    "llama-3-70b-h100": 400_000,  # two H100 of 80 GB, weights of 8 bits, three quarters of the rest at 163,840 bytes
    "llama-3-70b-4xh100": 1_000_000,  # four H100, weights of 16 bits, nine tenths of the rest, KV of 8 bits as well
}
"""KV tokens of one worker."""


class Profile(msgspec.Struct, frozen=True):
    """`name` as it was asked for."""

    name: str
    cost: CostModel
    kv_tokens: int


def find_profile(name: str) -> Profile:
    """A named profile, or that of a file. Raises SettingsError that lists the known ones, or names file and field."""
    if name.startswith(CUSTOM):
        return _read(name, Path(name.removeprefix(CUSTOM)))
    if name not in KV_TOKENS:
        known = ", ".join([*KV_TOKENS, f"{CUSTOM}FILE"])
        raise SettingsError(f"profile {name!r} is unknown; known are {known}", param="profile")
    return Profile(name, PROFILES[name], KV_TOKENS[name])


def _read(name: str, path: Path) -> Profile:
    decode: dict[str, Any] = {".toml": msgspec.toml.decode, ".json": msgspec.json.decode}
    if path.suffix not in decode:
        raise SettingsError(f"profile {name!r}: the file's name must end in .toml or .json", param="profile")
    try:
        content = decode[path.suffix](path.read_bytes())
    except OSError as error:
        raise SettingsError(f"profile {name!r}: {error.strerror or error}", param="profile") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"profile {name!r}: {error}", param="profile") from error
    if not isinstance(content, dict):
        raise SettingsError(f"profile {name!r}: not an object with fields", param="profile")
    kv_tokens = content.pop("kv_tokens", None)
    if not isinstance(kv_tokens, int) or isinstance(kv_tokens, bool) or kv_tokens < 1:
        raise SettingsError(
            f"profile {name!r}: kv_tokens is {kv_tokens!r}, must be a number from 1 up", param="profile"
        )
    try:
        cost = msgspec.convert(content, CostModel)
    except (msgspec.ValidationError, SettingsError) as error:
        raise SettingsError(f"profile {name!r}: {error}", param="profile") from error
    return Profile(name, cost, kv_tokens)
