"""Blocks that are inside of the runs one worker holds, found by looking at all of them.

The index of prefix nodes has only the ends of runs. Hashes are compared as numbers, many at once: a look at 16,000
blocks takes some 0.2 ms, however many are searched for. Changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from prebled.core.blocks import HASH_BYTES

if TYPE_CHECKING:
    from prebled.core.prefix_nodes import PrefixNode
    from prebled.core.use_order import UseOrder

LOW = 0xFFFF
"""The bits of a hash that are compared first."""


def find_inner(order: UseOrder, blocks: Sequence[bytes]) -> list[tuple[PrefixNode, int]]:
    """The node of each of these blocks that is held, and the block's index in its run; of a node earlier ones first."""
    nodes = [holding.node for holding in order.held()]
    runs = b"".join([node.run for node in nodes])
    held, wanted = np.frombuffer(runs, "<u8"), np.frombuffer(b"".join(blocks), "<u8")
    # Most that is held differs from all that is wanted in the lowest bits already.
    is_wanted = np.zeros(LOW + 1, np.bool_)
    is_wanted[wanted & LOW] = True
    near: list[int] = is_wanted[held & LOW].nonzero()[0].tolist()
    names = set(blocks)
    ends = list(accumulate(node.blocks for node in nodes))
    found = []
    for place in near:
        if runs[place * HASH_BYTES : (place + 1) * HASH_BYTES] in names:
            owner = nodes[number := bisect_right(ends, place)]
            found.append((owner, place - ends[number] + owner.blocks))
    return found
