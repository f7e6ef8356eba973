"""A scripted daemon as a fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from scripted_daemon import ScriptedDaemon


@pytest.fixture
def address(short_dir: Path) -> str:
    return f"unix:{short_dir}/fabric.sock"


@pytest.fixture
async def make_daemon(address: str) -> AsyncIterator[Callable[..., ScriptedDaemon]]:
    made: list[ScriptedDaemon] = []

    def make(epoch: bytes = b"daemon-1", *, subscribe: bool = True) -> ScriptedDaemon:
        made.append(ScriptedDaemon(address, epoch, subscribe=subscribe))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
async def daemon(make_daemon: Callable[..., ScriptedDaemon]) -> ScriptedDaemon:
    return make_daemon()
