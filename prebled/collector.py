"""Python's cyclic garbage collector, set for a process that keeps a large tree and answers in microseconds.

A full collection walks every object that can be in a cycle: 24 ms for a prefix tree of a million blocks, in which
nothing is ever found, since the core frees all it drops by counting references (a test holds it to that). Cycles come
only from tasks and exceptions, a few with each request.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""New objects between two collections of the youngest generation; Python's own 700 are a dozen requests' worth."""


def settle() -> None:
    """Call once everything is loaded: what is there now stays for good and is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
