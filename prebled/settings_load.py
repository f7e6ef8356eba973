"""Fills in the settings, once: defaults < files < `PREBLED_*` environment < flags.

A file is TOML. `PREBLED_BLOCK_TOKENS` is `block_tokens`, `PREBLED_LIMITS__MAX_WAITING` is `limits.max_waiting`, a list
has commas. Unknown keys and bad values are refused with a `SettingsError` that names key, value and where it came from.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from prebled.addresses import fabric_endpoints, parse_address, parse_http_address
from prebled.errors import SettingsError
from prebled.settings import CHOICES, Settings

SYSTEM_FILE = Path("/etc/prebled/prebled.toml")
PREFIX = "PREBLED_"
PASSED_THROUGH = "sglang"
"""The one table whose keys are not ours to know."""

_IN_ORDER = (
    ("fabric.beat_s", "fabric.lost_after_s"),
    ("fabric.restart_first_s", "fabric.restart_most_s"),
    ("fabric.alone_abort_s", "fabric.alone_exit_s"),
)
"""Pairs where the first must not be above the second."""


class Value(msgspec.Struct, frozen=True):
    """One setting. `source`: `default`, a file, a variable or a flag. `is_text`: still to be read as what is wanted."""

    key: str
    value: Any
    source: str
    is_text: bool = False


class Loaded(msgspec.Struct, frozen=True):
    """The merged settings and where each came from. `files`: those that were read."""

    settings: Settings
    values: tuple[Value, ...]
    files: tuple[Path, ...]


def load_settings(file: Path | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Merge all sources. `file` None: the system's and the user's file, as far as they exist. `flags` by dotted key;
    None stands for a flag that was not given. Raises SettingsError."""
    return load_with_sources(file, env, flags).settings


def load_with_sources(file: Path | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    """Like `load_settings`, with the source of every value."""
    files = tuple(path for path in default_files(env) if os.path.isfile(path)) if file is None else (file,)
    known = dict(_leaves(Settings))
    merged = {key: Value(key, value, "default") for key, (_, value) in known.items()}
    for given in _all_given(files, env, flags, known):
        merged[given.key] = _convert(given, known)
    _check_together(merged)
    settings = _build(Settings, {key: value.value for key, value in merged.items()})
    return Loaded(settings, tuple(merged.values()), files)


def default_files(env: Mapping[str, str]) -> tuple[Path, Path]:
    """Where settings are looked for if no file is named; the user's file wins over the system's."""
    home = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME', '')}/.config"
    return SYSTEM_FILE, Path(home) / "prebled" / "config.toml"


# --- the known keys -----------------------------------------------------------------------------------------------


def _leaves(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted key, (type, default)) of every setting that is not a table."""
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        elif field.name != PASSED_THROUGH:
            yield prefix + field.name, (field.type, field.default)


def _build(struct: type[msgspec.Struct], values: Mapping[str, Any], prefix: str = "") -> Any:
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        key = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            fields[field.name] = _build(field.type, values, f"{key}.")
        elif field.name == PASSED_THROUGH:
            fields[field.name] = {name.partition(".")[2]: values[name] for name in values if _is_passed(name)}
        else:
            fields[field.name] = values[key]
    return struct(**fields)


def _is_passed(key: str) -> bool:
    return key.startswith(f"{PASSED_THROUGH}.")


def _unknown(what: str, key: str, known: Mapping[str, Any], spell: Callable[[str], str]) -> SettingsError:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {spell(nearest[0])}?" if nearest else "'prebled config show' lists all"
    return SettingsError(f"{what}: unknown setting; {hint}")


# --- the sources, least first -------------------------------------------------------------------------------------


def _all_given(
    files: tuple[Path, ...], env: Mapping[str, str], flags: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[Value]:
    for path in files:
        yield from _from_table(_read(path), path, known)
    for name in sorted(env):
        if name.startswith(PREFIX):
            yield _from_variable(name, env[name], known)
    for key, value in flags.items():
        if value is not None:
            assert key in known, key
            flag = "--fabric" if key == "fabric_address" else "--" + key.replace("_", "-")
            yield Value(key, value, flag, isinstance(value, str))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"settings file {path}: {error}") from error


def _from_table(table: Mapping[str, Any], path: Path, known: Mapping[str, Any], prefix: str = "") -> Iterator[Value]:
    for name, value in table.items():
        key = prefix + name
        is_table = key == PASSED_THROUGH or any(other.startswith(f"{key}.") for other in known)
        if is_table and isinstance(value, dict):
            yield from _from_table(value, path, known, f"{key}.")
        elif is_table:
            raise SettingsError(f"{key} = {value!r} ({path}): a table is wanted")
        elif key in known or _is_passed(key):
            yield Value(key, value, str(path))
        else:
            raise _unknown(f"{key} ({path})", key, known, str)


def _from_variable(name: str, text: str, known: Mapping[str, Any]) -> Value:
    key = name.removeprefix(PREFIX).lower().replace("__", ".")
    if _is_passed(key):
        return Value(key, _as_toml(text), name)
    if key not in known:
        raise _unknown(name, key, known, lambda near: PREFIX + near.upper().replace(".", "__"))
    return Value(key, text, name, is_text=True)


def _as_toml(text: str) -> Any:
    """`true` and `0.8` as TOML reads them, anything else as text."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


# --- checks -------------------------------------------------------------------------------------------------------


def _convert(given: Value, known: Mapping[str, tuple[Any, Any]]) -> Value:
    kind = known[given.key][0] if given.key in known else bool | int | float | str
    raw = given.value
    if kind == tuple[str, ...] and given.is_text:
        raw = [part for part in (part.strip() for part in raw.split(",")) if part]
    try:
        value = msgspec.convert(raw, kind, strict=not given.is_text)
        _check(given.key, value)
    except (msgspec.ValidationError, SettingsError) as error:
        why = str(error).replace("`", "")
        raise SettingsError(f"{given.key} = {given.value!r} ({given.source}): {why}") from error
    return Value(given.key, value, given.source)


def _check(key: str, value: Any) -> None:
    choices = _policy_names() if key == "policy" else CHOICES.get(key)
    if choices is not None and value not in choices:
        raise SettingsError(f"not one of {', '.join(choice or repr('') for choice in choices)}")
    match key:
        case "http":
            for address in value:
                parse_http_address(address)
        case "listen":
            for address in value:
                parse_address(address)
        case "fabric_address" if value:
            fabric_endpoints(value)


def _check_together(merged: Mapping[str, Value]) -> None:
    for lower, upper in _IN_ORDER:
        low, high = merged[lower], merged[upper]
        if low.value > high.value:
            raise SettingsError(f"{lower} = {low.value} ({low.source}) is above {upper} = {high.value} ({high.source})")


def _policy_names() -> tuple[str, ...]:
    # Imported only where a policy is named: it brings the whole core and NumPy.
    from prebled.core.policies import POLICIES

    return tuple(POLICIES)
