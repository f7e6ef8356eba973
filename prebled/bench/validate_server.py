"""A daemon with SGLang workers of its own, in a process of its own, for one measurement: start, ask, stop.

It is `prebled start` as anybody would start it, with all its files in a folder that goes with it. What its workers'
steps cost is asked where everybody can ask it: `/metrics`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import final

from prebled.client import AsyncClient
from prebled.core.cost import CostModel
from prebled.errors import EngineFailed, PrebledError, SettingsError

START_S = 300.0
"""A daemon whose workers do not serve after so long has failed."""

STOP_S = 20.0

CHUNK_TOKENS, MAX_RUNNING = 2048, 64
"""What SGLang is told, so that the simulation can be told the same."""

_COST = re.compile(r'^prebled_worker_cost_seconds\{worker="([^"]+)",coefficient="([^"]+)"\} (\S+)$', re.MULTILINE)


@final
class Server:
    """A daemon that serves. `address` is that of its native socket."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address = address
        self._process = process
        self._log = log

    async def wait_ready(self, workers: int) -> None:
        """Until so many workers serve. Raises EngineFailed with the end of the log."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                async with AsyncClient(self.address) as client:
                    status = await client.status()
            except PrebledError:
                pass  # it does not listen yet
            else:
                if sum(worker.state == "ready" for worker in status.workers) >= workers:
                    return
            await asyncio.sleep(0.2)
        end = self._log.read_text(errors="replace")[-2000:]
        raise EngineFailed(f"the daemon did not serve with {workers} workers; its log ends with:\n{end}")

    async def costs(self) -> list[CostModel]:
        """What work costs each worker, as fitted so far to the steps that it has reported."""
        async with AsyncClient(self.address) as client:
            status = await client.status()
        url = f"http://{next(at for at in status.http if not at.startswith('unix'))}/metrics"
        text = await asyncio.to_thread(_read, url)
        of_worker: dict[str, dict[str, float]] = {}
        for worker, coefficient, seconds in _COST.findall(text):
            of_worker.setdefault(worker, {})[f"{coefficient}_s"] = float(seconds)
        return [CostModel(**coefficients) for _, coefficients in sorted(of_worker.items())]

    async def places(self, request_ids: Sequence[str]) -> list[str]:
        """Which worker each request was placed on."""
        places = []
        async with AsyncClient(self.address) as client:
            for request_id in request_ids:
                placement = (await client.explain(request_id)).placement
                places.append(placement.worker_id if placement is not None else "")
        return places


@asynccontextmanager
async def server(
    model: Path, *, policy: str, queue_policy: str, workers: int, kv_tokens: int, block_tokens: int
) -> AsyncIterator[Server]:
    """A daemon with workers on this machine, each with one thread for its model; it is stopped at the end. Raises
    SettingsError where there is no such model, EngineFailed if it does not come to serve."""
    process, folder, address = await asyncio.to_thread(
        _start, model, policy, queue_policy, workers, kv_tokens, block_tokens
    )
    try:
        started = Server(address, process, folder / "daemon.log")
        await started.wait_ready(workers)
        yield started
    finally:
        await asyncio.to_thread(_stop, process)
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    model: Path, policy: str, queue_policy: str, workers: int, kv_tokens: int, block_tokens: int
) -> tuple[subprocess.Popen[bytes], Path, str]:
    if not (model / "config.json").is_file():
        raise SettingsError(f"model {str(model)!r}: no config.json there", param="model")
    folder = Path(tempfile.mkdtemp(prefix="pb-"))
    address = f"unix:{folder}/prebled.sock"
    flags = {
        "model": str(model.resolve()),
        "engine": "sglang",
        "policy": policy,
        "queue-policy": queue_policy,
        "workers": str(workers),
        "kv-tokens": str(kv_tokens),
        "block-tokens": str(block_tokens),
        "http": "127.0.0.1:0",
        "listen": address,
        "log": "json",
    }
    settings = folder / "settings.toml"
    settings.write_text(f"[sglang]\nchunked_prefill_size = {CHUNK_TOKENS}\nmax_running_requests = {MAX_RUNNING}\n")
    command = [sys.executable, "-m", "prebled.cli", "start", "--config", str(settings)]
    for name, value in flags.items():
        command += [f"--{name}", value]
    environment = {**os.environ, "PREBLED_RUNTIME_DIR": str(folder / "run"), "OMP_NUM_THREADS": "1"}
    log = folder / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    return process, folder, address


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Its workers end with it: it stops them itself, unless it is killed, and then they exit by themselves."""
    for _ in range(2):  # the second signal cuts its waiting short
        process.terminate()
        try:
            process.wait(STOP_S)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text
