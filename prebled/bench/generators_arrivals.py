"""When generated requests come: Poisson, or in bursts like those of a code assistant.

`azure`: bursts and silences alternate, both exponential, of 6 s and 18 s on average; in each burst requests come as a
Poisson process whose rate is drawn from a gamma distribution of shape 2.1. At the 2.567 requests a second of Azure's
2023 code trace this has that trace's dispersion (variance over mean of the counts in windows): 71 against 72 in windows
of 10 s, 13 against 13 in those of 1 s; at 60 s 107 against 164, for the real silences have a longer tail. At another
rate all times scale, as when the trace itself is sped up; the mean rate of the whole is exactly the one asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prebled.bench.trace_recording import Floats

_AZURE_RATE = 2.567
_BURST_S, _SILENCE_S = 6.0, 18.0
_SHAPE = 2.1
_AT_ONCE = 256


def poisson(chance: np.random.Generator, requests: int, rate: float) -> Floats:
    """Seconds, from 0; `rate` a second."""
    return _from_zero(np.cumsum(chance.exponential(1 / rate, requests)))


def azure(chance: np.random.Generator, requests: int, rate: float) -> Floats:
    """Seconds, from 0; `rate` a second over the whole."""
    burst_rate = _AZURE_RATE * (_BURST_S + _SILENCE_S) / _BURST_S
    parts: list[Floats] = []
    begin, count = 0.0, 0
    while count < requests:
        lengths = chance.exponential(_BURST_S, _AT_ONCE)
        silences = chance.exponential(_SILENCE_S, _AT_ONCE)
        rates = chance.gamma(_SHAPE, burst_rate / _SHAPE, _AT_ONCE)
        counts = chance.poisson(rates * lengths)
        begins = begin + np.cumsum(lengths + silences) - lengths - silences
        within = chance.random(int(counts.sum())) * np.repeat(lengths, counts)
        parts.append(np.sort(np.repeat(begins, counts) + within))
        begin = float(begins[-1] + lengths[-1] + silences[-1])
        count += int(counts.sum())
    stamps = np.concatenate(parts)[:requests]
    span_s = float(stamps[-1] - stamps[0])
    return _from_zero(stamps * ((requests - 1) / rate / span_s) if span_s else stamps)


def _from_zero(stamps: Floats) -> Floats:
    # To the microsecond: the last digits of logarithms are not the same on every machine.
    moved: Floats = stamps - stamps[0]
    return moved.round(6)


ARRIVALS: dict[str, Callable[[np.random.Generator, int, float], Floats]] = {"poisson": poisson, "azure": azure}
