"""The daemon's process: puts the parts together, starts them, waits for a signal, and stops them in order.

Start: runtime directory and its lock, model files, sockets (whatever is wrong with an address is known before a worker
is started), then workers. Ready: when the first worker serves. Stop, on SIGTERM or SIGINT: accept nothing new, let
what is accepted end, close the doors, stop the workers of launcher `local`, close the fabric. A second signal cuts the
waiting short. Killed: workers go on, and the next daemon finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog
import uvloop

from prebled.collector import settle
from prebled.core.cost import profile
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import WorkerId
from prebled.daemon.fabric import Fabric
from prebled.daemon.gpus import plan_workers, visible_gpus
from prebled.daemon.http import create_app
from prebled.daemon.http_server import HttpServer
from prebled.daemon.metrics import Metrics
from prebled.daemon.notify import Notifier
from prebled.daemon.runtime import Runtime
from prebled.daemon.runtime_dir import RuntimeDir
from prebled.daemon.socket_server import SocketServer
from prebled.daemon.supervisor import Supervisor
from prebled.daemon.switchboard import Switchboard
from prebled.daemon.tokenizing import Tokenizing
from prebled.daemon.worker_command import local_worker
from prebled.daemon.worker_logs import WorkerLogs
from prebled.errors import Draining
from prebled.model_files import load_model_files
from prebled.runtime_dir import daemon_runtime_dir
from prebled.settings import Settings
from prebled.worker_options import model_for_workers

log = structlog.get_logger()

DOORS_S = 5.0
"""How long answers that are being written may take once nothing is computed any more."""


def run_daemon(settings: Settings, env: Mapping[str, str] = os.environ) -> int:
    """Serve until a signal; the exit status. Raises SettingsError where it cannot start."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(settings, env).serve())


class Daemon:
    """One life of the daemon."""

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._env = env
        self._stopping = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._is_loading = True
        self._notifier = Notifier(env)

    async def serve(self) -> int:
        """Start, serve, stop."""
        async with contextlib.AsyncExitStack() as stack:
            self._listen_to_signals(stack)
            await self._open(stack)
            settle()
            await self._work()
        log.info("stopped")
        return 0

    # --- start ---

    def _listen_to_signals(self, stack: contextlib.AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take_signal, number)
            stack.callback(loop.remove_signal_handler, number)

    def _take_signal(self, number: signal.Signals) -> None:
        log.info("signal", signal=signal.Signals(number).name, again=self._stopping.is_set())
        if self._stopping.is_set():
            self._stop_now.set()
        self._stopping.set()

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        stack.callback(self._notifier.close)
        self._notifier.status("starting")
        directory = RuntimeDir(daemon_runtime_dir(settings.runtime_dir, self._env, os.getuid()))
        directory.create()
        directory.lock()
        stack.callback(directory.close)
        files = await asyncio.to_thread(load_model_files, settings.model)
        tokenizing = await asyncio.to_thread(Tokenizing.load, files)
        stack.callback(tokenizing.close)
        self._build(directory, tokenizing)
        self._fabric.start()
        stack.callback(self._fabric.close)
        await self._open_doors(stack, directory)

    def _build(self, directory: RuntimeDir, tokenizing: Tokenizing) -> None:
        settings = self._settings
        # As for workers: a daemon that is started elsewhere would not know its workers again by another path.
        model = model_for_workers(settings.model)
        daemon_epoch = time.time_ns().to_bytes(8, "big")
        name = settings.served_model_name or Path(settings.model).name
        self._scheduler = GlobalScheduler(
            make_policy(settings.policy, settings.core),
            settings.core,
            block_tokens=settings.block_tokens,
            max_waiting=settings.limits.max_waiting,
            retry_after_s=settings.limits.retry_after_s,
            cost=profile(settings.core.profile or self._usual_profile()),
        )
        self._runtime = Runtime(
            self._scheduler,
            tokenizing,
            served_model_name=name,
            policy=settings.policy,
            limits=settings.limits,
            daemon_epoch=daemon_epoch,
        )
        self._switchboard = Switchboard(self._runtime, model, self._tell_progress, self._tell_ready)
        fabric_address = settings.fabric_address or f"unix:{directory.fabric_path.resolve()}"
        self._fabric = Fabric(
            fabric_address,
            daemon_epoch,
            self._switchboard,
            settings.fabric,
            block_tokens=settings.block_tokens,
            model=name,
        )
        self._runtime.attach(self._fabric)
        self._logs = WorkerLogs(directory.workers)
        self._supervisor: Supervisor | None = None
        if settings.launcher == "local":
            # The simulated engine uses none, so any number of its workers fits.
            gpus = visible_gpus(self._env) if settings.engine == "sglang" else ()
            plan = plan_workers(settings.workers, settings.tp, gpus)
            devices = {WorkerId(f"w{index}"): gpus for index, gpus in enumerate(plan)}
            self._supervisor = Supervisor(
                list(devices),
                lambda worker_id: local_worker(
                    settings, worker_id, model, fabric_address, devices[worker_id], self._env
                ),
                directory,
                settings.fabric,
                self._switchboard,
                self._fabric.stop_worker,
            )
        self._switchboard.attach(self._fabric, self._supervisor)

    def _usual_profile(self) -> str:
        """The cost profile nearest to what will serve, to start from: each worker's own steps correct it."""
        if self._settings.engine == "sim":
            return self._settings.sim.profile
        has_gpus = self._settings.launcher == "external" or visible_gpus(self._env)
        return "mistral-7b-a6000" if has_gpus else "tiny-cpu"

    async def _open_doors(self, stack: contextlib.AsyncExitStack, directory: RuntimeDir) -> None:
        settings = self._settings
        metrics = Metrics(self._runtime, self._scheduler, self._fabric.statistics, max_blocks=settings.core.max_blocks)
        app = create_app(self._runtime, settings.limits, metrics.expose, metrics.http)
        self._http = HttpServer(app, settings.http, settings.limits)
        metrics.connections["http"] = lambda: self._http.open_connections
        await self._http.start()
        stack.push_async_callback(self._http.wait_closed, DOORS_S)
        listen = settings.listen or (f"unix:{directory.socket_path}",)
        native = await stack.enter_async_context(SocketServer(self._runtime, listen, settings.limits))
        metrics.connections["native"] = lambda: native.open_connections
        self._runtime.http_addresses = self._http.addresses
        self._runtime.listen_addresses = native.addresses
        log.info("listening", http=list(self._http.addresses), native=list(native.addresses))

    # --- progress ---

    def _tell_progress(self, text: str) -> None:
        if self._is_loading:
            self._notifier.status(text)

    def _tell_ready(self, worker_id: WorkerId) -> None:
        if not self._is_loading or self._stopping.is_set():
            return
        self._is_loading = False
        model = self._runtime.model().name
        log.info("ready", model=model, http=list(self._http.addresses), first_worker=worker_id)
        self._notifier.ready(f"serving {model}")

    # --- work, and the way out ---

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            background: list[Coroutine[Any, Any, None]] = [
                self._fabric.run(),
                self._logs.run(),
                self._notifier.run(lambda: self._is_loading or self._stopping.is_set()),
            ]
            tasks = [group.create_task(one) for one in background]
            workers = group.create_task(self._supervisor.run()) if self._supervisor is not None else None
            await self._stopping.wait()
            await self._finish_requests()
            self._http.stop_accepting()
            if self._supervisor is not None and workers is not None:
                await self._stop_workers(self._supervisor, workers)
            for task in tasks:
                task.cancel()

    async def _finish_requests(self) -> None:
        self._notifier.stopping("draining")
        log.info("draining", requests=self._runtime.in_flight())
        drained = await self._until_stop_now(self._runtime.drain(self._settings.drain_timeout_s))
        if not drained:
            log.warning("requests cut off", requests=self._runtime.in_flight())
        self._runtime.fail_all(Draining("the daemon stops"))

    async def _stop_workers(self, supervisor: Supervisor, workers: asyncio.Task[None]) -> None:
        supervisor.stop_nowait()
        hurry = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait([workers, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not workers.done():
            supervisor.kill_nowait()
            await workers
        hurry.cancel()

    async def _until_stop_now(self, wait: Coroutine[Any, Any, bool]) -> bool:
        """The outcome of `wait`; False if a second signal came first."""
        waiting = asyncio.create_task(wait)
        hurry = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait([waiting, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        return False
