"""The guarded stand-ins: only for packages that are missing or broken, whole, and gone with the process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prebled.worker import sglang_standins


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    (folder / name / "part.py").write_text("value = 1\n")


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_package_that_loads_is_left_alone(importable: Path) -> None:
    package(importable, "goodkernels", "from goodkernels import part\n")
    finders = list(sys.meta_path)
    assert sglang_standins.install(["goodkernels"]) == ()
    assert sys.meta_path == finders
    assert importlib.import_module("goodkernels.part").value == 1


def test_a_missing_package_is_stood_in_for_at_any_depth() -> None:
    assert sglang_standins.install(["nokernels"]) == ("nokernels",)
    assert sglang_standins.install(["nokernels"]) == ()
    module = importlib.import_module("nokernels.runtime.jit")
    assert module is importlib.import_module("nokernels").runtime.jit


def test_a_package_that_breaks_halfway_leaves_nothing_behind(importable: Path) -> None:
    package(importable, "badkernels", "from badkernels import part\nraise OSError('no such library')\n")
    assert sglang_standins.install(["badkernels"]) == ("badkernels",)
    assert not [name for name in sys.modules if name.startswith("badkernels")]
    part = importlib.import_module("badkernels.part")
    assert isinstance(part, sglang_standins.StandIn)


def test_nothing_else_is_touched() -> None:
    sglang_standins.install(["nokernels"])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nokernels_of_another_name")


def test_what_sglang_does_with_triton_works() -> None:
    sys.meta_path.insert(0, sglang_standins.StandInFinder(["triton"]))
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "triton"}
    try:
        triton = importlib.import_module("triton")
        language = importlib.import_module("triton.language")

        @triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
        @triton.jit
        def kernel(n: int) -> int:
            return n

        assert kernel(3) == 3
        assert language.constexpr(5).value == 5

        class Launcher(triton.runtime.KernelInterface):  # type: ignore[name-defined,misc]
            pass

        assert issubclass(importlib.import_module("triton.runtime.errors").OutOfResources, Exception)
    finally:
        sys.modules.update(hidden)


def test_what_sglang_does_with_torchvision_works() -> None:
    sys.meta_path.insert(0, sglang_standins.StandInFinder(["torchvision"]))
    modes = importlib.import_module("torchvision.transforms").InterpolationMode
    assert modes.BICUBIC is importlib.import_module("torchvision.transforms.functional").InterpolationMode.BICUBIC
    assert importlib.import_module("torchvision").__version__
