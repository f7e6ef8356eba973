"""What a placement would push out of a worker's cache: Preble's M (section 3.2).

M_i = sum over the victims j of PT_j * N_j: the prefill seconds of what would be evicted, each times the share of the
worker's requests in the window that used it. Victims are taken as the worker's own LRU would take them. Where the paper
always evicts, M is zero here while there is free KV space; and at most `MOST_VICTIMS` prefix nodes are looked at, so M
is a lower bound where more would have to go. Output tokens, which take KV space as well, are not known beforehand.
"""

from __future__ import annotations

from prebled.core.cost import CostModel
from prebled.core.use_order import UseOrder

MOST_VICTIMS = 8


def eviction_s(order: UseOrder, needed_blocks: int, block_tokens: int, cost: CostModel) -> float:
    """M of one worker for a request that needs so many more blocks there."""
    lacking = needed_blocks - (order.capacity_blocks - order.blocks)
    victim = order.oldest() if lacking > 0 else None
    lost_s = 0.0
    for _ in range(MOST_VICTIMS):
        if lacking <= 0 or victim is None or not victim.is_held:
            break
        blocks = victim.node.blocks
        if victim.hits:
            evicted = min(blocks, lacking) * block_tokens
            lost_s += cost.prefill_s(evicted, evicted) * victim.hits / order.visits
        lacking -= blocks
        victim = victim.newer
    return lost_s
