"""A worker as the supervisor starts it: a process of its own, real signals, and a scripted daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_daemon import ScriptedDaemon
from sim_runs import submit

from prebled.core.types import WorkerId
from prebled.messages import Batch, Beat, Done, Hello, Leaving, Ready, Welcome
from prebled.settings import FabricSettings, SimSettings
from prebled.worker_options import WorkerOptions, worker_command

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def address(short_dir: Path) -> str:
    return f"unix:{short_dir}/fabric.sock"


@pytest.fixture
async def daemon(address: str) -> AsyncIterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(address)
    yield daemon
    daemon.close()


@pytest.fixture
def start(address: str, short_dir: Path) -> Iterator[Start]:
    """Starts a worker; its log lies beside its socket."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**options: Any) -> subprocess.Popen[bytes]:
        chosen = WorkerOptions(
            WorkerId("w0"),
            address,
            "sim",
            **{"fabric": FabricSettings(beat_s=0.05), "sim": SimSettings(speed=20.0), **options},
        )
        with (short_dir / "worker.log").open("ab") as log:
            started.append(subprocess.Popen(worker_command(chosen), stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


async def wait_exit(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 10)


async def greet(daemon: ScriptedDaemon) -> tuple[Hello, Ready]:
    hello = await daemon.hear(Hello)
    await daemon.say(Welcome(daemon.epoch))
    return hello, await daemon.hear(Ready, skip=(Hello, Beat))


async def test_killed_and_started_again_it_is_the_same_worker_in_another_life(
    daemon: ScriptedDaemon, start: Start
) -> None:
    process = start()
    hello, ready = await greet(daemon)
    assert (hello.worker_id, hello.pid, hello.engine) == ("w0", process.pid, "sim")
    assert (ready.capacity.device, ready.capacity.kv_tokens) == ("sim", 198_516 // 64 * 64)
    await daemon.say(Batch((submit("a", range(20), 10_000),)))
    await daemon.next_frame()
    os.kill(process.pid, signal.SIGKILL)
    assert await wait_exit(process) == -signal.SIGKILL
    start()
    again = await daemon.hear(Hello)
    assert again.worker_id == "w0"
    assert again.epoch > hello.epoch
    await daemon.say(Welcome(daemon.epoch))
    assert (await daemon.hear(Ready, skip=(Hello, Beat))).next_seq == 1


async def test_sigterm_lets_runs_finish(daemon: ScriptedDaemon, start: Start, short_dir: Path) -> None:
    process = start()
    await greet(daemon)
    await daemon.say(Batch((submit("a", range(20), 60),)))
    await daemon.next_frame()
    process.send_signal(signal.SIGTERM)
    assert (await daemon.hear_beat(lambda beat: beat.phase != "ready")).phase == "draining"
    done = await daemon.hear(Done)
    assert (done.reason, done.output_tokens) == ("length", 60)
    assert (await daemon.hear(Leaving)).reason == "drained"
    assert await wait_exit(process) == 0
    lines = [json.loads(line) for line in (short_dir / "worker.log").read_text().splitlines()]
    assert all(line["worker"] == "w0" for line in lines)
    assert lines[-1]["event"] == "worker exits"


async def test_a_second_sigterm_stops_at_once(daemon: ScriptedDaemon, start: Start) -> None:
    process = start()
    await greet(daemon)
    await daemon.say(Batch((submit("a", range(20), 30_000),)))
    await daemon.next_frame()
    process.send_signal(signal.SIGTERM)
    await daemon.hear_beat(lambda beat: beat.phase == "draining")
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM" in (await daemon.hear(Leaving)).reason
    assert await wait_exit(process) == 0


async def test_the_models_vocabulary_is_told(daemon: ScriptedDaemon, start: Start, tiny_model: Path) -> None:
    from prebled.tiny_model import VOCAB_SIZE

    start(model=str(tiny_model), kv_tokens=1000, context_tokens=500, block_tokens=16)
    _, ready = await greet(daemon)
    capacity = ready.capacity
    assert (capacity.vocab_size, capacity.kv_tokens, capacity.max_total_tokens) == (VOCAB_SIZE, 992, 500)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sim": SimSettings(profile="abacus")}, "abacus"),
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"queue_policy": "lpm"}, "lpm"),
        ({"block_tokens": 0}, "block_tokens 0"),
        ({"log": "xml"}, "xml"),
    ],
)
async def test_impossible_options_are_named(start: Start, short_dir: Path, options: dict[str, Any], named: str) -> None:
    process = start(**options)
    assert await wait_exit(process) == 2
    (line,) = (short_dir / "worker.log").read_text().splitlines()
    assert named in line


def test_garbled_options_are_named() -> None:
    command = [sys.executable, "-m", "prebled.worker.main", "--options-json", '{"worker_id": "w0", "engin": "sim"}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "engin" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_simulated_worker_imports_neither_torch_nor_sglang() -> None:
    code = (
        "import sys; from prebled.worker.main import make_engine; from prebled.worker_options import WorkerOptions;"
        "make_engine(WorkerOptions('w0', 'unix:x', 'sim'));"
        "print(sorted({'torch', 'sglang', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "[]"
