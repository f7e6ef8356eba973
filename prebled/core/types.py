"""The distinct kinds of identifier and number that cross borders inside prebled."""

from __future__ import annotations

from typing import NewType

RequestId = NewType("RequestId", str)
"""One client request, for its whole life, whatever workers it visits. What `x-request-id` and `explain` carry."""

RunId = NewType("RunId", str)
"""One stay of a request on one worker. A request that continues elsewhere gets a new run; ids never repeat, not even
across daemon restarts, so that a late frame of an old run cannot be mistaken for a new one."""

WorkerId = NewType("WorkerId", str)
"""A worker's stable name, `w0`, `w1`, ...: the same after a restart, with another epoch."""

Epoch = NewType("Epoch", int)
"""A worker's life, unique per start (nanoseconds of its start). Frames of an older epoch are ignored."""

BlockHash = NewType("BlockHash", int)
"""xxh3_64 of a block of tokens, chained over all blocks before it: equal hash, equal prefix. Unsigned, 64 bits."""
