"""Chance for traces: each use of it has a stream of its own, so that one more draw for one does not shift another."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, use: str) -> np.random.Generator:
    """The random numbers of a seed (0 or more) for one use."""
    return np.random.default_rng([seed, zlib.crc32(use.encode())])
