"""The highest rate at which something still holds, found by trying rates."""

from __future__ import annotations

from collections.abc import Callable

STRIDE = 1.5
"""Factor between rates tried while both sides of the limit are not known yet."""

MOST_STRIDES = 24


def highest(
    holds: Callable[[float], bool], guess: float, *, precision: float, most_strides: int = MOST_STRIDES
) -> float:
    """The highest rate tried at which `holds`, no more than `precision` (0.03: 3 %) below one at which it does not.

    `holds` is taken to be true below a limit and false above it; where it is not, some place where it changes is found.
    `most_strides`: how far from `guess` to look. 0.0 if it held nowhere down there, the last rate tried if it held
    everywhere up there."""
    low, high = 0.0, 0.0
    rate = guess
    for _ in range(most_strides):
        if holds(rate):
            low = rate
        else:
            high = rate
        if low and high:
            break
        rate = low * STRIDE if low else high / STRIDE
    while low and high and high > low * (1 + precision):
        rate = (low * high) ** 0.5
        if holds(rate):
            low = rate
        else:
            high = rate
    return low
