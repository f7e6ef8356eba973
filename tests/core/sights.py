"""Sights made by hand, for tests of policies: every row of the loads by name, costs of 1 ms a token."""

from __future__ import annotations

import numpy as np

from prebled.core.cost import CostModel
from prebled.core.load import (
    BEHIND,
    BOOKED,
    DECODE,
    DECODING,
    KV_TOKENS,
    OUTPUT,
    REQUESTS,
    UNTIL,
    WAITING_TOKENS,
    Loads,
)
from prebled.core.prefix_tree import PrefixTree
from prebled.core.sharing import Sharing
from prebled.core.sight import Sight
from prebled.core.types import WorkerId

COST = CostModel(0.0, 0.0, 1e-3, 0.0, 0.0, 0.0, 1e-3, 0.0)
"""1 ms a prefill token, 1 ms a decode token; nothing for context."""

BLOCK = 64

ROWS = {
    "wait_s": BEHIND,
    "until": UNTIL,
    "decode_s": DECODE,
    "decoding": DECODING,
    "requests": REQUESTS,
    "waiting_tokens": WAITING_TOKENS,
    "kv_tokens": KV_TOKENS,
    "booked": BOOKED,
    "output_s": OUTPUT,
}


def path(name: int, blocks: int) -> bytes:
    """A path that shares nothing with those of other names. Slices of it are its prefixes."""
    return (np.arange(blocks, dtype="<u8") + np.uint64(name << 32 | 1 << 63)).tobytes()


def tree(workers: int, capacity_blocks: int = 1000) -> PrefixTree:
    made = PrefixTree(max_blocks=100_000, window_s=180.0)
    for slot in range(workers):
        made.set_capacity(slot, capacity_blocks)
    return made


def sight(
    cached: list[int],
    *,
    prompt: int = 1000,
    now: float = 0.0,
    hashes: bytes = b"",
    sharing: Sharing | None = None,
    caches: PrefixTree | None = None,
    ids: list[WorkerId] | None = None,
    costs: dict[int, CostModel] | None = None,
    **rows: list[float],
) -> Sight:
    """`cached`: tokens per candidate, named w0, w1, ...; `costs`: of the candidates that have not `COST`; `rows`: see
    `ROWS`, 0 where not given."""
    loads = Loads(COST)
    for slot in range(len(cached)):
        loads.reset(slot)
        loads.set_cost(slot, (costs or {}).get(slot, COST))
    for name, values in rows.items():
        loads.table[ROWS[name]] = values
    return Sight(
        prompt_tokens=prompt,
        cached_tokens=np.array(cached, np.float64),
        loads=loads.rows,
        costs=loads,
        now=now,
        ids=ids or [WorkerId(f"w{number}") for number in range(len(cached))],
        slots=np.arange(len(cached)),
        hashes=hashes or path(0, prompt // BLOCK),
        block_tokens=BLOCK,
        sharing=sharing or Sharing(),
        caches=caches or tree(len(cached)),
    )
