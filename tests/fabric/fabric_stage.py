"""A running fabric with its listener and its scripted workers: what the tests of the fabric stand on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from scripted_worker import Recorder, ScriptedWorker

from prebled.core.types import RunId, WorkerId
from prebled.daemon.fabric import Fabric
from prebled.messages import Sampling, Submit
from prebled.settings import FabricSettings

EPOCH = b"\x01daemon\x02"
MODEL = "served"
W0 = WorkerId("w0")
QUICK = FabricSettings(beat_s=0.1, lost_after_s=0.6, replay_after_s=0.05, batch_s=0.1)


def submit(run_id: str) -> Submit:
    return Submit(RunId(run_id), b"\x01\0\0\0", Sampling(max_tokens=5))


class Stage:
    """A fabric that runs, its listener, and workers that are closed in the end."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/f.sock"
        self.recorder = Recorder()
        self.fabric = Fabric(self.address, EPOCH, self.recorder, QUICK, block_tokens=64, model=MODEL)
        self.workers: list[ScriptedWorker] = []

    def worker(self, worker_id: str = "w0", epoch: int = 1, identity: bytes | None = None) -> ScriptedWorker:
        self.workers.append(ScriptedWorker(self.address, worker_id, epoch, identity))
        return self.workers[-1]

    async def ready_worker(self, worker_id: str = "w0", epoch: int = 1) -> ScriptedWorker:
        worker = self.worker(worker_id, epoch)
        count = len(self.recorder.all("ready"))
        await worker.join()
        await self.recorder.wait("ready", count + 1)
        return worker

    async def start_runs(self, worker: ScriptedWorker, *run_ids: str) -> None:
        for run_id in run_ids:
            assert self.fabric.submit_nowait(worker.worker_id, submit(run_id))
        assert await worker.hear_runs(len(run_ids)) == list(run_ids)

    def count(self, name: str) -> int:
        return int(getattr(self.fabric.statistics(), name))


@contextlib.asynccontextmanager
async def open_stage(folder: Path) -> AsyncIterator[Stage]:
    stage = Stage(folder)
    stage.fabric.start()
    running = asyncio.ensure_future(stage.fabric.run())
    try:
        yield stage
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        for worker in stage.workers:
            worker.close()
        stage.fabric.close()
