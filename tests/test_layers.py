"""The import rule: who may import whom, read from the source of every file in `prebled/`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "prebled"
FILES = sorted(ROOT.rglob("*.py"))

CORE_MAY = {
    # of the standard library: nothing that waits, reads files, logs, tells time or rolls dice
    *("__future__", "abc", "array", "bisect", "collections", "collections.abc", "dataclasses", "enum", "functools"),
    *("heapq", "itertools", "math", "operator", "struct", "types", "typing"),
    *("msgspec", "numpy", "numpy.typing", "xxhash"),
    *("prebled.core", "prebled.errors", "prebled.messages", "prebled.settings"),
}
GPU_STACK = {"sglang", "torch", "transformers"}
NEVER = {"worker": ("daemon", "bench"), "daemon": ("worker", "bench")}
SPEAKING_BUILTINS = {"open", "print", "input"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it; of `from a import b` it is `a`, or `a.b` where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if is_module(name)}
            found.update(submodules or {module})
    return found


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offences(path: Path, found: set[str]) -> set[str]:
    """Imports of a file (its path relative to `prebled/`) that the rule does not allow."""
    layer = path.parts[0]
    bad = set()
    if not (layer == "worker" and path.name.startswith("sglang_")):
        bad |= {module for module in found if within(module, "sglang")}
        if layer != "worker":
            bad |= {module for module in found if module.split(".")[0] in GPU_STACK}
    if layer == "core":
        own = {module for module in found if within(module, "prebled.core")}
        bad |= found - own - CORE_MAY
    for one, other in (("worker", "daemon"), ("daemon", "worker")):
        if layer == one:
            bad |= {module for module in found if within(module, f"prebled.{other}")}
    if layer != "bench":
        bad |= (
            {module for module in found if within(module, "prebled.bench")} if layer in {"worker", "daemon"} else set()
        )
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    assert offences(path.relative_to(ROOT), imports(path)) == set()


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda path: path.name)
def test_the_core_opens_and_prints_nothing(path: Path) -> None:
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & SPEAKING_BUILTINS
    assert "np.random" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("core/scheduler.py", "time"),
        ("core/scheduler.py", "random"),
        ("core/scheduler.py", "asyncio"),
        ("core/scheduler.py", "structlog"),
        ("core/scheduler.py", "prebled.daemon.runtime"),
        ("core/scheduler.py", "numpy.random"),
        ("worker/link.py", "prebled.daemon.fabric"),
        ("worker/link.py", "sglang.srt"),
        ("daemon/fabric.py", "prebled.worker.link"),
        ("daemon/tokenizing.py", "transformers"),
        ("client/native.py", "torch"),
        ("cli.py", "sglang"),
    ],
)
def test_the_rule_catches(path: str, module: str) -> None:
    assert offences(Path(path), {module, "prebled.errors"}) == {module}
