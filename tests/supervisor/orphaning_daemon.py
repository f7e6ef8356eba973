"""A daemon that does nothing but supervise, to be killed with -9. Arguments: runtime directory, then the command."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from prebled.core.types import WorkerId
from prebled.daemon.runtime_dir import RuntimeDir
from prebled.daemon.supervisor import Supervisor
from prebled.settings import FabricSettings


class Nobody:
    def worker_started(self, worker_id: WorkerId, pid: int, restarts: int, adopted: bool) -> None: ...

    def worker_exited(self, worker_id: WorkerId, code: int | None) -> None: ...


directory = RuntimeDir(Path(sys.argv[1]))
directory.create()
directory.lock()
command = sys.argv[2:]
workers = [WorkerId("w0"), WorkerId("w1")]
supervisor = Supervisor(
    workers, lambda worker_id: (command, os.environ), directory, FabricSettings(), Nobody(), lambda worker_id: False
)
asyncio.run(supervisor.run())
