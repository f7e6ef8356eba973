"""A link to test against a scripted daemon, and what it brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scripted_daemon import ScriptedDaemon
from sim_runs import EOS_TOKEN_IDS, VOCAB_SIZE

from prebled.core.types import Epoch, WorkerId
from prebled.messages import Done, Tokens
from prebled.settings import FabricSettings, SimSettings
from prebled.worker.engine import Engine
from prebled.worker.link import Ending, Link
from prebled.worker.sim_engine import SimEngine

QUICK = FabricSettings(beat_s=0.02)


BLOCK_TOKENS = 4096
"""So large that these short runs leave nothing in the cache: all frames are tokens."""


def sim_engine(speed: float = 1e6) -> SimEngine:
    return SimEngine(
        SimSettings(speed=speed), BLOCK_TOKENS, model="m", vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS
    )


def make_link(address: str, engine: Engine, settings: FabricSettings = QUICK) -> Link:
    return Link(
        engine,
        address=address,
        worker_id=WorkerId("w0"),
        epoch=Epoch(41),
        pid=1234,
        engine_name="sim",
        settings=settings,
    )


@asynccontextmanager
async def running(link: Link) -> AsyncIterator[asyncio.Task[Ending]]:
    """The link at work; told to stop at the end if it still is."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        yield task
        if not task.done():
            link.stop("the test is over")


async def collect(daemon: ScriptedDaemon, runs: int, first_seq: int = 1) -> tuple[dict[str, list[int]], list[bytes]]:
    """The tokens of so many runs to their ends, and the frames; numbers without holes and ends after their frames."""
    ends = await daemon.hear_ends(runs)
    frames: list[bytes] = []
    tokens: dict[str, list[int]] = {run_id: [] for run_id in ends}
    last_seen: dict[str, int] = {}
    for seq in range(first_seq, max(end.last_seq for end in ends.values() if isinstance(end, Done)) + 1):
        raw, frame = await daemon.next_frame()
        frames.append(raw)
        assert isinstance(frame, Tokens)
        assert (frame.epoch, frame.seq) == (41, seq)
        for chunk in frame.chunks:
            tokens[chunk.run_id] += chunk.tokens
            last_seen[chunk.run_id] = seq
    assert all(end.last_seq >= last_seen[run_id] for run_id, end in ends.items() if isinstance(end, Done))
    return tokens, frames
