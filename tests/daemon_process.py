"""A real daemon in its own process, for tests that look at it from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DaemonProcess:
    """`prebled start` in a process of its own, with all its files under `folder`."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.run_dir = folder / "run"
        self.http_port = free_port()
        self.native = f"unix:{self.run_dir}/prebled.sock"
        self.http_socket = f"{folder}/http.sock"
        self.log_path = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.args: list[str] = []
        self.env: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, *args: str, env: dict[str, str] | None = None, engine: str = "sim", workers: int = 2) -> None:
        """Start with these further arguments; returns at once."""
        self.args = [
            *("--model", str(self.model), "--engine", engine, "--workers", str(workers)),
            *("--http", f"127.0.0.1:{self.http_port}", "--http", f"unix:{self.http_socket}"),
            *("--listen", self.native, "--log", "json", *args),
        ]
        self.env = {**os.environ, "PREBLED_RUNTIME_DIR": str(self.run_dir), "OMP_NUM_THREADS": "1", **(env or {})}
        self.restart()

    def restart(self) -> None:
        """Start again with the same arguments."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prebled.cli", "start", *self.args], stdout=log, stderr=log, env=self.env
            )

    def restart_seconds(self, timeout: float = 30) -> float:
        """Start again after a kill, and how long it took until it was ready, by its own word over HTTP."""
        start = time.monotonic()
        self.restart()
        while time.monotonic() - start < timeout:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                    return time.monotonic() - start
            except OSError:  # nobody listens yet, or 503
                time.sleep(0.01)
        raise AssertionError(f"not ready again; daemon's log:\n{self.log_path.read_text()[-6000:]}")

    def best_restart_seconds(self, below: float, tries: int = 4) -> float:
        """The best of several restarts after kill -9, as few as it takes: one alone says as much of the machine's
        other work as of ours."""
        best = self.restart_seconds()
        for _ in range(tries - 1):
            if best < below:
                break
            self.signal(signal.SIGKILL)
            self.wait_exit()
            best = min(best, self.restart_seconds())
        return best

    def cli(self, *args: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run another verb against this daemon."""
        command = [sys.executable, "-m", "prebled.cli", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=self.env, check=False)

    def status(self) -> dict[str, Any] | None:
        """`prebled status --json`, None while nobody answers."""
        done = self.cli("status", "--json", "--connect", self.native)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout: float = 90) -> dict[str, Any]:
        """Wait until the status fulfils `condition`; fails with the daemon's log."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = self.status()
            if status is not None and condition(status):
                return status
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"condition not met; daemon's log:\n{self.log_path.read_text()[-6000:]}")

    def wait_ready(self, workers: int = 2, timeout: float = 90) -> dict[str, Any]:
        """Wait until this many workers serve."""
        return self.wait(lambda s: sum(w["state"] == "ready" for w in s["workers"]) >= workers, timeout)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_exit(self, timeout: float = 30) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def worker_pids(self) -> list[int]:
        status = self.status()
        return [w["pid"] for w in status["workers"] if w["pid"]] if status else []

    def close(self) -> None:
        """Stop the daemon and whatever workers are left."""
        pids = {json.loads(p.read_text())["pid"] for p in self.run_dir.glob("workers/*.json")}
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in pids:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
