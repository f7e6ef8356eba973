"""Blocks that are inside of the runs one worker holds, found by looking at all of them.

The index of prefix nodes has only the ends of runs. Hashes are compared as numbers, many at once: a look at 16,000 blocks
takes some 0.1 ms, however many are searched for. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from prebled.core.prefix_nodes import PrefixNode
    from prebled.core.use_order import UseOrder

FEW = 4
"""Up to so many blocks are compared one by one with all that is held."""


def find_inner(order: UseOrder, blocks: Sequence[bytes]) -> list[tuple[PrefixNode, int]]:
    """For each of these blocks that is in a run: the node, and its index in the run, in the order of the nodes' blocks.
    """
    nodes = [holding.node for holding in order.held()]
    if not nodes:
        return []
    held = np.frombuffer(b"".join([node.run for node in nodes]), "<u8")
    wanted = np.frombuffer(b"".join(blocks), "<u8")
    if len(wanted) <= FEW:
        near = np.concatenate([(held == one).nonzero()[0] for one in wanted])
    else:
        # Most that is held differs from all that is wanted in the lowest bits already.
        is_wanted = np.zeros(1 << 16, np.bool_)
        is_wanted[wanted & 0xFFFF] = True
        near = is_wanted[held & 0xFFFF].nonzero()[0]
        near = near[np.isin(held[near], wanted)]
    starts = np.cumsum([0, *[node.blocks for node in nodes]])
    places = np.unique(near)
    owners = np.searchsorted(starts, places, side="right") - 1
    found = zip(owners.tolist(), (places - starts[owners]).tolist(), strict=True)
    return [(nodes[owner], index) for owner, index in found]
