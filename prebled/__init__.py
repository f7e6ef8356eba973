"""Prefix-aware scheduling of LLM requests over GPU workers (Preble, ICLR'25) as a daemon.

`prebled.Client` and `prebled.AsyncClient` talk to a running daemon; they are loaded on first use so that
`import prebled.core` stays free of sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prebled.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"AsyncClient", "Client"}:
        from prebled import client

        return getattr(client, name)
    raise AttributeError(f"module 'prebled' has no attribute {name!r}")
