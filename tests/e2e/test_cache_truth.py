"""What the daemon believes its workers hold, against SGLang's own trees, block by block: runtime, scheduler, fabric,
links and engines as they are, in one process but for SGLang's; frames are lost on the way as the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sglang_tree_child import CHILD, read_blocks, tree_path

from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, WorkerId
from prebled.daemon.fabric import Fabric
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.runtime import Runtime
from prebled.daemon.switchboard import Switchboard
from prebled.daemon.tokenizing import Tokenizing
from prebled.model_files import load_model_files
from prebled.settings import CoreSettings, FabricSettings, LimitSettings
from prebled.tiny_model import VOCAB_SIZE
from prebled.worker import sglang_engine
from prebled.worker.link import Link
from prebled.worker.link_sockets import LinkSockets
from prebled.worker.sglang_engine import SGLangEngine
from prebled.worker.sglang_process import SchedulerProcesses

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

BLOCK_TOKENS = 64
KV_BLOCKS = 32
NAME = "served"


class Stage:
    """A daemon's inner half and two workers."""

    def __init__(self, folder: Path, model: Path, fabric: FabricSettings) -> None:
        core = CoreSettings()
        policy = make_policy("e2", core)
        self.scheduler = GlobalScheduler(policy, core, block_tokens=BLOCK_TOKENS, max_waiting=1000, retry_after_s=1.0)
        self.runtime = Runtime(
            self.scheduler,
            Tokenizing.load(load_model_files(str(model))),
            served_model_name=NAME,
            policy="e2",
            limits=LimitSettings(max_runs=1000),
            daemon_epoch=bytes(8),
        )
        self._ready: list[WorkerId] = []
        switchboard = Switchboard(self.runtime, str(model), lambda line: None, self._ready.append)
        address = f"unix:{folder}/f.sock"
        self.fabric = Fabric(address, os.urandom(8), switchboard, fabric, block_tokens=BLOCK_TOKENS, model=NAME)
        switchboard.attach(self.fabric, None)
        self.runtime.attach(self.fabric)
        self.engines = {WorkerId(f"w{n}"): self._engine(model) for n in range(2)}
        self._links = [
            Link(
                engine,
                address=address,
                worker_id=worker_id,
                epoch=Epoch(100 + n),
                pid=os.getpid(),
                engine_name="sglang",
                settings=fabric,
            )
            for n, (worker_id, engine) in enumerate(self.engines.items())
        ]

    def _engine(self, model: Path) -> SGLangEngine:
        return SGLangEngine(
            str(model),
            block_tokens=BLOCK_TOKENS,
            kv_tokens=KV_BLOCKS * BLOCK_TOKENS,
            context_tokens=1024,
            device="cpu",
            server_args={"max_running_requests": 6, "chunked_prefill_size": 256},
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.fabric.start()
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self.fabric.run())
            links = [group.create_task(link.run()) for link in self._links]
            while len(self._ready) < len(links):
                await asyncio.sleep(0.05)
                assert not any(link.done() for link in links), links
            yield
            for link in self._links:
                link.stop("the test is over")
            await asyncio.wait(links)
            keeping.cancel()
        self.fabric.close()

    async def serve(self, rng: random.Random, requests: int, at_once: int) -> None:
        """Serve so many requests with shared beginnings; a few are given up by their clients."""
        gate = asyncio.Semaphore(at_once)

        async def one(request: GenerateInput, is_patient: bool) -> None:
            async with gate:
                stream = await self.runtime.generate(request)
                async for _ in stream:
                    if not is_patient:
                        await stream.aclose()
                        return

        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(one(_request(rng), rng.random() < 0.9))

    def believed(self, worker_id: WorkerId) -> frozenset[bytes]:
        """What the scheduler's tree says that this worker holds."""
        worker = self.scheduler._workers.get(worker_id)
        assert worker is not None
        return self.scheduler._placer.tree.held_hashes(worker.slot)

    async def wait_true(self, theirs: Callable[[WorkerId], frozenset[bytes]]) -> None:
        """SGLang writes its tree down, and the last frames come, a moment after the last output."""
        for worker_id in self.engines:
            for _ in range(1000):
                if self.believed(worker_id) == theirs(worker_id):
                    break
                await asyncio.sleep(0.01)
            assert self.believed(worker_id) == theirs(worker_id)
        self.scheduler.check_invariants()


def _request(rng: random.Random) -> GenerateInput:
    shared = np.random.default_rng(rng.randrange(12)).integers(100, VOCAB_SIZE, 500)
    own = np.random.default_rng(rng.randrange(10**6)).integers(100, VOCAB_SIZE, 200)
    tokens = np.concatenate([shared[: rng.choice((64, 200, 500))], own[: rng.randint(1, 200)]])
    salt = rng.choice(("", "", "s"))
    ids = tokens.astype("<u4").tobytes()
    return GenerateInput(prompt_tokens=ids, max_tokens=rng.choice((1, 3, 70)), ignore_eos=True, cache_salt=salt)


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where SGLang's processes write their trees."""
    monkeypatch.setenv("PREBLED_TEST_TREES", str(tmp_path))
    monkeypatch.setenv("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python")
    monkeypatch.setattr(sglang_engine, "SchedulerProcesses", functools.partial(SchedulerProcesses, CHILD))
    return tmp_path


async def test_the_tree_is_the_trees(
    trees: Path, short_dir: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quiet first; then with one frame in twenty dropped, which the ring has forgotten when it is asked for."""
    rng = random.Random(2)
    loss = 0.0

    def lossy(sockets: LinkSockets, topic: bytes, frame: bytes) -> None:
        if rng.random() >= loss:
            publish(sockets, topic, frame)

    publish = LinkSockets.publish
    monkeypatch.setattr(LinkSockets, "publish", lossy)
    fabric = FabricSettings(beat_s=0.1, lost_after_s=30.0, replay_after_s=0.3, ring_frames=2)
    stage = Stage(short_dir, tiny_model, fabric)

    def theirs(worker_id: WorkerId) -> frozenset[bytes]:
        blocks = read_blocks(tree_path(trees, stage.engines[worker_id].pids[0]), NAME, BLOCK_TOKENS)
        return frozenset(block.to_bytes(8, "little") for block in blocks)

    async with stage.running():
        for loss in (0.0, 0.05):  # noqa: B007
            await stage.serve(rng, 40, at_once=8)
            await stage.wait_true(theirs)
            assert all(theirs(worker_id) for worker_id in stage.engines)
        counts = stage.fabric.statistics()
        assert counts.holes > 0
        assert counts.snapshots >= 2 + (counts.snapshots_asked > 0)
        print(msgspec.json.encode(counts).decode())  # noqa: T201
