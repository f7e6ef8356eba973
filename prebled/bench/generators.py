"""Generated traces: the workloads of Preble's Table 1, and mixes of them, by name.

A source is written `workload:NAME[*WEIGHT][+NAME...][?KEY=VALUE&...]` with the keys `requests`, `rate` (a second),
`zipf` (exponent of the popularity of groups, 0 for all alike; without it they have the published spread), `groups` (how
many; without it as many as give the published mean) and `arrivals` (`poisson` or `azure`): for instance
`workload:toolbench?zipf=1.1&groups=640&rate=36` or `workload:toolbench*3+videoqa?arrivals=azure`. In a mix each
workload has its share of the requests by weight, all come in one stream of arrivals, and nothing is shared between
workloads; `groups` is for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

import numpy as np

from prebled.bench.generators_arrivals import ARRIVALS
from prebled.bench.generators_draws import apportion, riffle
from prebled.bench.generators_shapes import WORKLOADS
from prebled.bench.trace_chance import stream
from prebled.bench.trace_recording import Recording, concatenated
from prebled.errors import SettingsError

PREFIX = "workload:"
DEFAULT_REQUESTS = 2000
DEFAULT_RATE = 10.0
MOST_REQUESTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Workload:
    """What to generate: names with their weights, and how it comes."""

    parts: tuple[tuple[str, float], ...]
    requests: int = DEFAULT_REQUESTS
    rate: float = DEFAULT_RATE
    zipf: float | None = None
    groups: int | None = None
    arrivals: str = "poisson"

    @property
    def name(self) -> str:
        """As it is written in a source, without the prefix and the keys."""
        return "+".join(part if weight == 1 else f"{part}*{weight:g}" for part, weight in self.parts)


def parse_workload(source: str, requests: int | None = None) -> Workload:
    """What a source asks for; `requests` where it does not say how many. Raises SettingsError."""
    names, _, keys = source.removeprefix(PREFIX).partition("?")
    workload = Workload(tuple(_part(source, part) for part in names.split("+")), requests or DEFAULT_REQUESTS)
    for key, _, value in (pair.partition("=") for pair in keys.split("&") if pair):
        if key == "requests":
            workload = replace(workload, requests=_number(source, key, value, int))
        elif key == "groups":
            workload = replace(workload, groups=_number(source, key, value, int))
        elif key == "rate":
            workload = replace(workload, rate=_number(source, key, value, float))
        elif key == "zipf":
            workload = replace(workload, zipf=_number(source, key, value, float))
        elif key == "arrivals":
            workload = replace(workload, arrivals=value)
        else:
            _refuse(source, f"unknown key {key!r}; known are requests, rate, zipf, groups and arrivals")
    return workload


def record(workload: Workload, seed: int) -> Recording:
    """The trace of a workload: the same for a seed on any machine. Raises SettingsError for values that make none."""
    _check(workload)
    weights = np.array([weight for _, weight in workload.parts])
    counts = apportion(weights, workload.requests).tolist()
    shares = [
        _labelled(WORKLOADS[name].record(count, stream(seed, f"part {number}"), workload.zipf, workload.groups), name)
        for number, ((name, _), count) in enumerate(zip(workload.parts, counts, strict=True))
        if count
    ]
    mixed = concatenated(shares)
    if len(shares) > 1:
        mixed = mixed.take(riffle(stream(seed, "mix"), np.array([len(share.sessions) for share in shares])))
    arrive = ARRIVALS[workload.arrivals]
    return mixed.at(arrive(stream(seed, "arrivals"), workload.requests, workload.rate))


def _labelled(recording: Recording, name: str) -> Recording:
    return replace(recording, sessions=[f"{name}-{session}" for session in recording.sessions])


def _part(source: str, text: str) -> tuple[str, float]:
    name, star, weight = text.partition("*")
    if name not in WORKLOADS:
        _refuse(source, f"unknown workload {name!r}; known are {', '.join(WORKLOADS)}")
    return name, _number(source, "weight", weight, float) if star else 1.0


_Number = TypeVar("_Number", int, float)


def _number(source: str, key: str, text: str, kind: type[_Number]) -> _Number:
    try:
        return kind(text)
    except ValueError:
        _refuse(source, f"{key} is {text!r}, must be a {'whole ' if kind is int else ''}number")


def _check(workload: Workload) -> None:
    if workload.arrivals not in ARRIVALS:
        raise SettingsError(f"unknown arrivals {workload.arrivals!r}; known are {', '.join(ARRIVALS)}")
    for name, weight in workload.parts:
        if name not in WORKLOADS:
            raise SettingsError(f"unknown workload {name!r}; known are {', '.join(WORKLOADS)}")
        if not 0 < weight < math.inf:
            raise SettingsError(f"{workload.name}: the weight of {name} is {weight:g}, must be above 0", param="weight")
    values = (("requests", workload.requests), ("rate", workload.rate), ("groups", workload.groups))
    for key, value in values:
        if value is not None and not 0 < value < math.inf:
            raise SettingsError(f"{workload.name}: {key} is {value:g}, must be above 0", param=key)
    if workload.zipf is not None and not 0 <= workload.zipf < math.inf:
        raise SettingsError(f"{workload.name}: zipf is {workload.zipf:g}, must not be negative", param="zipf")
    if workload.requests > MOST_REQUESTS:
        raise SettingsError(f"{workload.name}: requests is {workload.requests}, must be at most {MOST_REQUESTS}")


def _refuse(source: str, message: str) -> NoReturn:
    raise SettingsError(f"{source}: {message}")
