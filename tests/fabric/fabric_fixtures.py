"""The stage as a fixture. A plugin of the test modules that name it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fabric_stage import Stage, open_stage


@pytest.fixture
async def stage(short_dir: Path) -> AsyncIterator[Stage]:
    async with open_stage(short_dir) as stage:
        yield stage
