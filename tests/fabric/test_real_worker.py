"""The fabric with real worker processes on the simulated engine: what scripted ones claim, these have to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from naive_cache import NaiveCache
from scripted_worker import Recorder

from prebled.core.types import RunId, WorkerId
from prebled.daemon.fabric import Fabric
from prebled.messages import Sampling, Submit
from prebled.settings import FabricSettings, SimSettings
from prebled.worker_options import WorkerOptions, worker_command

W0 = WorkerId("w0")
PROMPT = struct.pack("<8I", *range(8))
SETTINGS = FabricSettings(beat_s=0.1, lost_after_s=3.0)


def submit(run_id: str, max_tokens: int = 40) -> Submit:
    return Submit(RunId(run_id), PROMPT, Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True))


class Worker:
    """A process that outlives the fabrics of a test."""

    def __init__(self, folder: Path, *, block_tokens: int = 16) -> None:
        self.address = f"unix:{folder}/fabric.sock"
        sim = SimSettings(kv_tokens=4096, context_tokens=1024, speed=1000)
        options = WorkerOptions(W0, self.address, "sim", block_tokens=block_tokens, fabric=SETTINGS, sim=sim)
        self.log = folder / "worker.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(worker_command(options), stdout=log, stderr=log)

    def wait_exit(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def worker(short_dir: Path) -> Iterator[Worker]:
    worker = Worker(short_dir)
    yield worker
    worker.close()


class Life:
    """One life of the daemon."""

    def __init__(self, address: str) -> None:
        self.recorder = Recorder()
        self.fabric = Fabric(address, os.urandom(8), self.recorder, SETTINGS, block_tokens=16, model="served")

    async def tokens_of(self, run_id: str) -> list[int]:
        """Run it to its end."""
        count = len(self.recorder.all("done"))
        assert self.fabric.submit_nowait(W0, submit(run_id))
        assert await self.recorder.wait("done", count + 1) == ("done", W0, run_id)
        return self.recorder.tokens(run_id)


@contextlib.asynccontextmanager
async def daemon(address: str) -> AsyncIterator[Life]:
    life = Life(address)
    life.fabric.start()
    running = asyncio.ensure_future(life.fabric.run())
    try:
        yield life
    finally:
        running.cancel()
        life.fabric.close()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_runs_come_back_whole_and_the_same_each_time(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        known = await life.recorder.wait("known")
        assert known[3] == worker.process.pid
        ready = await life.recorder.wait("ready")
        assert ready[3].block_tokens == 16
        first = await life.tokens_of("r1")
        assert len(first) == 40
        assert await life.tokens_of("r2") == first
        for number in range(50):
            life.fabric.submit_nowait(W0, submit(f"m{number}"))
        await life.recorder.wait("done", 52)
        assert all(life.recorder.tokens(f"m{number}") == first for number in range(50))
        assert 3 <= life.fabric.statistics().batches <= 12  # one more for each millisecond that the loop above takes


async def test_an_abort_ends_a_run(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        await life.recorder.wait("ready")
        life.fabric.submit_nowait(W0, submit("r1", max_tokens=900))
        await life.recorder.wait("chunk")
        life.fabric.abort_nowait(W0, [RunId("r1")])
        await life.recorder.wait("done")
        assert len(life.recorder.tokens("r1")) < 900


async def test_a_killed_worker_is_lost_at_once(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        await life.recorder.wait("ready")
        life.fabric.submit_nowait(W0, submit("r1", max_tokens=900))
        await life.recorder.wait("chunk")
        started = asyncio.get_running_loop().time()
        worker.process.kill()
        await life.recorder.wait("lost")
        assert asyncio.get_running_loop().time() - started < 1
        assert life.recorder.all("done", "failed", "run_lost") == []


async def test_a_stopped_worker_process_is_lost_and_comes_back(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        await life.recorder.wait("ready")
        worker.process.send_signal(signal.SIGSTOP)
        await life.recorder.wait("lost")
        worker.process.send_signal(signal.SIGCONT)
        await life.recorder.wait("ready", 2)
        assert len(await life.tokens_of("r1")) == 40


async def test_the_next_daemon_gets_the_same_worker_without_its_old_runs(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        await life.recorder.wait("ready")
        expected = await life.tokens_of("r0")
        life.fabric.submit_nowait(W0, submit("orphan", max_tokens=900))
        await life.recorder.wait("chunk")
    async with daemon(worker.address) as life:
        started = asyncio.get_running_loop().time()
        await life.recorder.wait("ready")
        assert asyncio.get_running_loop().time() - started < 2
        assert (await life.recorder.wait("known"))[3] == worker.process.pid
        assert await life.tokens_of("r1") == expected
        assert life.recorder.tokens("orphan") == []
        assert life.recorder.all("lost") == []


async def test_the_next_daemon_is_told_what_the_worker_still_holds(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        assert (await life.recorder.wait("kv_snapshot"))[2] == ()
        await life.tokens_of("r0")
        first = NaiveCache()
        for told in life.recorder.all("kv_changed"):
            for change in told[2]:
                first.apply(change)
        assert len(first.parents) == (8 + 40 - 1) // 16
        kinds = [told[0] for told in life.recorder.told]
        assert kinds.index("kv_changed") < kinds.index("done")
    async with daemon(worker.address) as life:
        assert NaiveCache((await life.recorder.wait("kv_snapshot"))[2]) == first
        life.fabric.ask_snapshot(W0)
        assert NaiveCache((await life.recorder.wait("kv_snapshot", 2))[2]) == first


async def test_a_worker_that_is_told_to_stop_leaves_with_code_0(worker: Worker) -> None:
    async with daemon(worker.address) as life:
        await life.recorder.wait("ready")
        assert life.fabric.stop_worker(W0)
        assert (await life.recorder.wait("lost"))[2].startswith("it leaves: ")
        assert await asyncio.to_thread(worker.wait_exit) == 0


async def test_a_worker_with_other_blocks_is_refused_and_exits(short_dir: Path) -> None:
    worker = Worker(short_dir, block_tokens=32)
    try:
        async with daemon(worker.address) as life:
            assert "32" in (await life.recorder.wait("lost"))[2]
            assert await asyncio.to_thread(worker.wait_exit) == 1
            assert "its blocks have 32 tokens, the daemon's 16" in worker.log.read_text()
    finally:
        worker.close()


async def test_of_two_workers_with_one_id_the_older_is_sent_away(worker: Worker, short_dir: Path) -> None:
    async with daemon(worker.address) as life:
        await life.recorder.wait("ready", 1)
        newer = Worker(short_dir)
        try:
            await life.recorder.wait("ready", 2)
            assert await asyncio.to_thread(worker.wait_exit) == 1
            assert newer.process.poll() is None
            assert len(await life.tokens_of("still-served")) == 40
        finally:
            newer.close()
