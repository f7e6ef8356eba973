"""What a placement would push out of a worker's cache: Preble's M (section 3.2).

M_i = sum over the victims j of PT_j * N_j: the prefill seconds of what would be evicted, each times the share of the
worker's requests in the window that used it. Victims are taken as the worker's own LRU would take them. Where the paper
always evicts, M is zero here while there is free KV space; and at most `MOST_VICTIMS` prefix nodes are looked at, and
below each, for who else used it, no more than `MOST_BELOW`, so M is a lower bound where more would have to go. Output
tokens, which take KV space as well, are not known beforehand.
"""

from __future__ import annotations

from itertools import islice

from prebled.core.cost import CostModel
from prebled.core.use_order import UseOrder

MOST_VICTIMS = 8
MOST_BELOW = 64


def eviction_s(order: UseOrder, needed_blocks: int, block_tokens: int, cost: CostModel) -> float:
    """M of one worker for a request that needs so many more blocks there."""
    lacking = needed_blocks - (order.capacity_blocks - order.blocks)
    lost_s = 0.0
    for victim in islice(order.victims(), MOST_VICTIMS if lacking > 0 else 0):
        node = victim.node
        if (hits := node.shared(order.slot, MOST_BELOW)) > 0:
            evicted = min(node.blocks, lacking) * block_tokens
            lost_s += cost.prefill_s(evicted, evicted) * hits / order.visits
        lacking -= node.blocks
        if lacking <= 0:
            break
    return lost_s
