"""Clients of a prebled daemon over its native socket: `AsyncClient` for asyncio, `Client` for threads.

```python
with prebled.Client() as client:
    for chunk in client.generate("Once upon a time", max_tokens=64):
        print(chunk.text, end="")
```

Both are loaded on first use: the blocking one must start fast, without asyncio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prebled.client.requests import Messages, Options, Prompt
from prebled.client.session import Answer, TokenChunk

if TYPE_CHECKING:
    from prebled.client.asyncio_client import AsyncClient, AsyncStream
    from prebled.client.blocking_client import Client, Stream

__all__ = ["Answer", "AsyncClient", "AsyncStream", "Client", "Messages", "Options", "Prompt", "Stream", "TokenChunk"]


def __getattr__(name: str) -> Any:
    if name in {"AsyncClient", "AsyncStream"}:
        from prebled.client import asyncio_client

        return getattr(asyncio_client, name)
    if name in {"Client", "Stream"}:
        from prebled.client import blocking_client

        return getattr(blocking_client, name)
    raise AttributeError(f"module 'prebled.client' has no attribute {name!r}")
