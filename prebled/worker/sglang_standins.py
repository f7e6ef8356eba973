"""Stand-ins for `triton` and `torchvision`, which SGLang imports at module scope even where it never uses them.

On a host without a GPU both are large, and torchvision's wheels do not load beside a CPU build of torch. `install` puts
a finder on `sys.meta_path` for those of the two that are missing or do not load, and for no other module; where the
real ones load, it does nothing. It must run in every process that imports SGLang, before it does. Nothing of these
names is ever on disk.

A stand-in can be imported, subclassed and used as a decorator, which is all that SGLang asks of it on the CPU; a kernel
that is launched all the same fails.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("triton", "torchvision")


def install(packages: Sequence[str] = PACKAGES) -> tuple[str, ...]:
    """Stand in for those of `packages` that do not load. Returns their names; safe to call again."""
    standing_in = {name for finder in sys.meta_path if isinstance(finder, StandInFinder) for name in finder.packages}
    missing = tuple(name for name in packages if name not in standing_in and not _loads(name))
    if missing:
        sys.meta_path.insert(0, StandInFinder(missing))
    return missing


def _loads(package: str) -> bool:
    """Whether the real package can be imported. If it breaks halfway, what it left in `sys.modules` is removed: later
    imports would otherwise find the pieces and take them for the whole."""
    if package in sys.modules:
        return True
    if importlib.util.find_spec(package) is None:
        return False
    before = set(sys.modules)
    try:
        importlib.import_module(package)
    except Exception:  # a broken binary raises whatever it likes: OSError, RuntimeError, ImportError, ...
        for name in set(sys.modules) - before:
            if name == package or name.startswith(f"{package}."):
                del sys.modules[name]
        return False
    return True


class StandInFinder(MetaPathFinder, Loader):
    """Finds every module of `packages`, at any depth, as a `StandIn`."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = tuple(packages)

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        for name, value in _VALUES.get(module.__name__, {}).items():
            setattr(module, name, value)


class StandIn(ModuleType):
    """A module whose attributes appear when they are asked for: a class for a capitalised name (an exception for one
    that ends like one), a submodule otherwise. Called, it is a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            base = Exception if name.endswith(("Error", "Resources")) else _AnyArguments
            value: Any = type(name, (base,), {"__module__": self.__name__})
        else:
            value = importlib.import_module(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 1 and not options and callable(args[0]):
            return args[0]
        return lambda function: function

    def __repr__(self) -> str:
        return f"<stand-in for {self.__name__!r}>"


class _AnyArguments:
    """Base of the stand-in classes: SGLang fills in some of them at module scope (`triton.Config`)."""

    def __init__(self, *args: object, **options: object) -> None:
        """Forgets all it is given."""


class _InterpolationMode(enum.Enum):
    """The members that transformers maps to and from Pillow's."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Constexpr:
    """`triton.language.constexpr` wraps values at module scope."""

    def __init__(self, value: object = None) -> None:
        self.value = value


_VALUES: dict[str, dict[str, Any]] = {
    "triton": {"__version__": "3.0.0"},
    "triton.backends": {"backends": {}},  # where torch looks whether triton can compile for a device
    "triton.language": {"constexpr": _Constexpr},
    "torchvision": {"__version__": "0.28.0"},
    "torchvision.transforms": {"InterpolationMode": _InterpolationMode},
    "torchvision.transforms.functional": {"InterpolationMode": _InterpolationMode},
    "torchvision.transforms.v2.functional": {"InterpolationMode": _InterpolationMode},
}
