"""Draws for the generators: lengths and popularity whose means come out as asked, whatever the seed.

A few large groups carry many requests, so that means of plain draws would differ by a tenth from seed to seed. Here the
sizes of groups are quantiles of their distribution, not samples, and lengths are scaled until their mean over requests
is the wanted one; which group has which is left to chance. Sums are exact (`math.fsum`), so the same on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from prebled.bench.trace_recording import Floats, Ints


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a lognormal distribution, and the bounds at which it is cut."""

    mean: float
    std: float
    low: int = 1
    high: int = 1 << 20

    def scaled(self, factor: float) -> Spread:
        """The same shape with a mean of `factor` times this one."""
        return replace(self, mean=self.mean * factor, std=self.std * factor)


def draw_lengths(chance: np.random.Generator, spread: Spread, weights: Ints, mean: float | None = None) -> Ints:
    """One length for each weight, whose weighted mean is that of `spread` (or `mean`) as near as its bounds allow."""
    sigma = math.sqrt(math.log1p((spread.std / spread.mean) ** 2))
    shape = np.exp(sigma * chance.standard_normal(weights.size))
    wanted = (spread.mean if mean is None else mean) * int(weights.sum())
    least, most = 0.0, spread.high / float(shape.min())
    for _ in range(64):
        factor = (least + most) / 2
        total = int((_bounded(factor * shape, spread) * weights).sum())
        least, most = (factor, most) if total < wanted else (least, factor)
    return _bounded(most * shape, spread)


def group_sizes(chance: np.random.Generator, spread: Spread, requests: int) -> Ints:
    """How many requests each group has: `requests` in all, `spread.mean` on average, at least one each."""
    groups = min(max(round(requests / spread.mean), 1), requests)
    sigma = math.sqrt(math.log1p((spread.std / spread.mean) ** 2))
    weights = np.exp(sigma * np.array([NormalDist().inv_cdf((i + 0.5) / groups) for i in range(groups)]))
    return chance.permutation(1 + apportion(weights, requests - groups))


def zipf_sizes(chance: np.random.Generator, groups: int, exponent: float, requests: int) -> Ints:
    """The same where each request picks its group by Zipf: the one of rank r in proportion to r^-exponent. Groups that
    nobody picked are left out."""
    weights = np.arange(1, groups + 1, dtype=np.float64) ** -exponent
    edges = np.cumsum(weights)
    picked = np.searchsorted(edges, chance.random(requests) * edges[-1], side="right")
    sizes = np.bincount(np.minimum(picked, groups - 1), minlength=groups)
    return sizes[sizes > 0].astype(np.int64)


def apportion(weights: Floats, total: int) -> Ints:
    """`total` shared out in whole numbers in proportion to the weights, largest remainders first."""
    exact = weights * (total / math.fsum(weights))
    parts = np.floor(exact).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts


def riffle(chance: np.random.Generator, counts: Ints) -> Ints:
    """An order that mixes piles of so many, which stand one after another, and keeps the order in each pile."""
    piles = chance.permutation(np.repeat(np.arange(counts.size), counts))
    order = np.empty(piles.size, np.int64)
    order[np.argsort(piles, kind="stable")] = np.arange(piles.size)
    return order


def _bounded(lengths: Floats, spread: Spread) -> Ints:
    return np.clip(np.rint(np.minimum(lengths, spread.high)).astype(np.int64), spread.low, spread.high)
