"""What a worker tells of its cache, and when: over real sockets, against a scripted daemon, from a scripted engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from link_stage import QUICK, make_link, running
from naive_cache import NaiveCache, removed, stored
from scripted_daemon import ScriptedDaemon, ScriptedEngine
from sim_runs import submit

from prebled.core.types import Epoch, RunId
from prebled.messages import (
    Batch,
    Chunk,
    Done,
    Frame,
    GetSnapshot,
    Introduce,
    KvChange,
    KvChanged,
    KvCleared,
    KvRemoved,
    KvSnapshot,
    Tokens,
    encode,
)
from prebled.settings import FabricSettings
from prebled.worker import run_service
from prebled.worker.engine import EngineStep, RunDone

PATIENT = msgspec.structs.replace(QUICK, kv_batch_s=1000.0)
"""Changes go when something makes them go, never because time has passed."""

A = RunId("a")


@asynccontextmanager
async def serving(
    daemon: ScriptedDaemon, address: str, settings: FabricSettings = PATIENT
) -> AsyncIterator[ScriptedEngine]:
    """An engine whose worker serves run a."""
    engine = ScriptedEngine()
    engine.loaded.set()
    async with running(make_link(address, engine, settings)):
        await daemon.greet()
        await daemon.say(Batch((submit(A, [1, 2], 9),)))
        await daemon.hear_beat(lambda beat: beat.running == 1)
        yield engine


def step(*kv: KvChange, cached: int | None = None, done: bool = False) -> EngineStep:
    """One step; `cached`: run a begins; `done`: it ends."""
    chunks = () if cached is None else (Chunk(A, (5,), cached),)
    return EngineStep(chunks, (RunDone(A, "stop", 2, 0, 1),) if done else (), kv=kv)


async def taken(engine: ScriptedEngine, one: EngineStep) -> None:
    """Bring a step and wait until the worker has worked it off."""
    engine.steps.put_nowait(one)
    while not engine.steps.empty():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def next_frame(daemon: ScriptedDaemon) -> Frame:
    return (await daemon.next_frame())[1]


async def test_changes_go_before_the_first_tokens_and_the_end_of_a_run(daemon: ScriptedDaemon, address: str) -> None:
    async with serving(daemon, address) as engine:
        for one in (
            step(removed(7)),
            step(removed(8, 9), stored(1)),
            step(cached=0),
            EngineStep((Chunk(A, (6,)),), kv=(stored(2, parent=1),)),
            step(stored(3, parent=2)),
            step(stored(4, parent=3), done=True),
        ):
            engine.steps.put_nowait(one)
        assert (await daemon.hear(Done)).last_seq == 4
        assert [await next_frame(daemon) for _ in range(4)] == [
            KvChanged(Epoch(41), 1, (removed(7, 8, 9), stored(1))),
            Tokens(Epoch(41), 2, (Chunk(A, (5,), 0),)),
            Tokens(Epoch(41), 3, (Chunk(A, (6,)),)),
            KvChanged(Epoch(41), 4, (stored(2, 3, 4, parent=1),)),
        ]


async def test_otherwise_they_wait_for_each_other_but_not_for_ever(daemon: ScriptedDaemon, address: str) -> None:
    settings = msgspec.structs.replace(QUICK, kv_batch_s=0.2)
    async with serving(daemon, address, settings) as engine:
        told_at = time.monotonic()
        for block in range(1, 6):
            engine.steps.put_nowait(step(stored(block)))
        told = await next_frame(daemon)
        assert isinstance(told, KvChanged)
        assert told.changes == tuple(stored(block) for block in range(1, 6))
        assert time.monotonic() - told_at > 0.19  # the loop's timers are exact to a millisecond
        engine.steps.put_nowait(step(KvCleared()))
        assert await next_frame(daemon) == KvChanged(Epoch(41), 2, (KvCleared(),))


async def test_a_burst_of_evictions_is_few_frames(daemon: ScriptedDaemon, address: str) -> None:
    """A hundred thousand evictions, in steps of 200 each."""
    async with serving(daemon, address, msgspec.structs.replace(QUICK, kv_batch_s=0.05)) as engine:
        began_at = time.monotonic()
        for first in range(1, 100_001, 200):
            engine.steps.put_nowait(step(removed(*range(first, first + 200))))
        engine.steps.put_nowait(step(done=True))
        last_seq = (await daemon.hear(Done)).last_seq
        took_s = time.monotonic() - began_at
        gone = b""
        for _ in range(last_seq):
            told = await next_frame(daemon)
            assert isinstance(told, KvChanged)
            assert len(encode(told)) <= run_service.KV_BYTES + 1024
            gone += b"".join(change.hashes for change in told.changes if isinstance(change, KvRemoved))
        assert len(gone) == 8 * 100_000
        assert last_seq <= 1 + took_s / 0.05 + 8 * 100_000 / run_service.KV_BYTES
        print(f"{last_seq} frames, {took_s * 1e3 / last_seq:.1f} ms each")  # noqa: T201


async def test_too_much_for_one_frame_goes_in_several(
    daemon: ScriptedDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_service, "KV_BYTES", 1024)
    monkeypatch.setattr(run_service, "SNAPSHOT_BYTES", 1024)
    async with serving(daemon, address) as engine:
        engine.steps.put_nowait(step(stored(*range(1, 301)), done=True))
        assert (await daemon.hear(Done)).last_seq == 3
        cache = NaiveCache()
        for _ in range(3):
            told = await next_frame(daemon)
            assert isinstance(told, KvChanged)
            for change in told.changes:
                cache.apply(change)
        assert len(cache.parents) == 300
        engine.runs = tuple(stored(block) for block in range(1, 101))
        await daemon.say(GetSnapshot())
        _, *parts = await daemon.hear_snapshots(5)
        assert [(part.part, part.is_last, part.last_seq) for part in parts] == [
            (0, False, 3),
            (1, False, 3),
            (2, False, 3),
            (3, True, 3),
        ]
        assert tuple(run for part in parts for run in part.runs) == engine.runs


async def test_a_daemon_is_told_what_is_held_before_ready_and_later_only_changes(
    make_daemon: Callable[..., ScriptedDaemon], address: str
) -> None:
    engine = ScriptedEngine()
    engine.loaded.set()
    engine.runs = (stored(1, 2), stored(3, parent=1))
    async with running(make_link(address, engine, PATIENT)):
        first = make_daemon(b"daemon-1")
        assert (await first.greet("served")).next_seq == 1
        assert first.snapshots == [KvSnapshot(Epoch(41), 0, engine.runs)]
        assert engine.namespaces == ["served"]
        await taken(engine, step(stored(4)))
        await first.say(GetSnapshot())
        assert (await first.hear_snapshots(2))[1].last_seq == 1, "what waited goes first"
        assert await next_frame(first) == KvChanged(Epoch(41), 1, (stored(4),))
        await taken(engine, step(stored(5)))
        await first.say(Introduce())
        await taken(engine, step(stored(6)))
        engine.runs = (stored(4), stored(5), stored(6))
        assert (await first.greet("other")).next_seq == 2
        assert first.snapshots[2:] == [KvSnapshot(Epoch(41), 1, engine.runs)]
        assert engine.namespaces == ["served", "other"]
        await taken(engine, step(stored(7)))
        await first.say(GetSnapshot())
        await first.hear_snapshots(4)
        assert await next_frame(first) == KvChanged(Epoch(41), 2, (stored(7),)), "5 and 6 were in the snapshot"


async def test_who_is_not_ready_yet_tells_no_snapshot(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    async with running(make_link(address, engine, PATIENT)):
        await daemon.next_message()
        await daemon.say(GetSnapshot())
        engine.loaded.set()
        await daemon.greet()
        assert len(daemon.snapshots) == 1
