"""The placement policies by name: `e2`, `e2-paper` and the baselines they are compared with."""

from __future__ import annotations

from collections.abc import Callable

from prebled.core.baselines import CacheAware, Dynamo, LeastLoaded, LMetric, RoundRobin
from prebled.core.dualmap import DualMap
from prebled.core.e2 import E2
from prebled.core.e2_paper import E2Paper
from prebled.core.sight import Policy
from prebled.errors import SettingsError
from prebled.settings import CoreSettings

POLICIES: dict[str, Callable[[CoreSettings], Policy]] = {
    E2.name: E2,
    E2Paper.name: E2Paper,
    # The constants of these are their sources' own.
    RoundRobin.name: lambda settings: RoundRobin(),
    LeastLoaded.name: lambda settings: LeastLoaded(),
    CacheAware.name: lambda settings: CacheAware(),
    Dynamo.name: lambda settings: Dynamo(),
    LMetric.name: lambda settings: LMetric(),
    DualMap.name: lambda settings: DualMap(),
}


def make_policy(name: str, settings: CoreSettings) -> Policy:
    """A fresh policy. Raises SettingsError that lists the known ones."""
    if name not in POLICIES:
        raise SettingsError(f"policy {name!r} is unknown; known are {', '.join(sorted(POLICIES))}", param="policy")
    return POLICIES[name](settings)
