"""All metrics of the daemon, as `/metrics` shows them (`docs/metrics.md` lists them).

State is asked of its owners at the moment of a scrape, so nothing has to be kept in step; only what nobody else counts
is counted by the meters. There is no registry shared by a process: as many daemons as a test likes. Labels have closed
sets of values, or name workers; none is a client's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from prometheus_client import ProcessCollector

from prebled import __version__
from prebled.core.scheduler import GlobalScheduler
from prebled.daemon import metrics_fabric, metrics_http, metrics_requests, metrics_scheduling, metrics_workers
from prebled.daemon.fabric_reports import FabricStatistics
from prebled.daemon.metrics_http import HttpMeter
from prebled.daemon.metrics_text import Family, Metric, content_type, gauge, info, is_openmetrics, render
from prebled.daemon.runtime import Runtime
from prebled.messages import DaemonStatus

BUILD = info("prebled_build_info", "The daemon's version and its Python's.", "version", "python")
SERVING = info("prebled_serving_info", "The served model's name, and the placement policy.", "model", "policy")
READY = gauge("prebled_ready", "1 if new requests are welcome.")
DRAINING = gauge("prebled_draining", "1 if the daemon is going away.")
WAITING = gauge("prebled_requests_waiting", "Requests accepted that have no token yet.")
RUNNING = gauge("prebled_requests_running", "Requests whose tokens come.")
CONNECTIONS = gauge("prebled_connections", "Clients' connections, by door; idle ones included.", "door")

METRICS: tuple[Metric, ...] = (
    *(BUILD, SERVING, READY, DRAINING, WAITING, RUNNING, CONNECTIONS),
    *metrics_requests.METRICS,
    *metrics_http.METRICS,
    *metrics_scheduling.METRICS,
    *metrics_workers.METRICS,
    *metrics_fabric.METRICS,
)
"""All of our own; those of the process (`process_...`) are `prometheus_client`'s."""


class Metrics:
    """Knows where the numbers are. `max_blocks`: bound of the prefix tree. `connections`: how many each door has open,
    entered by whoever opens it. `http`: for the application to count with."""

    def __init__(
        self,
        runtime: Runtime,
        scheduler: GlobalScheduler,
        fabric: Callable[[], FabricStatistics],
        *,
        max_blocks: int,
    ) -> None:
        self._runtime = runtime
        self._scheduler = scheduler
        self._fabric = fabric
        self._max_blocks = max_blocks
        self._process = ProcessCollector(registry=None)
        self.http = HttpMeter()
        self.connections: dict[str, Callable[[], int]] = {}

    def expose(self, accept: str) -> tuple[bytes, bytes]:
        """Everything as of now, in the format that an Accept header asks for: content type and body."""
        chosen = content_type(accept)
        return chosen.encode(), render(self.families(), openmetrics=is_openmetrics(chosen))

    def families(self) -> Iterator[Family]:
        """Everything as of now."""
        status = self._runtime.status()
        statistics = self._scheduler.statistics()
        yield from self._daemon_families(status)
        yield from self._runtime.requests.families()
        yield from self.http.families()
        yield from self._runtime.deciding.meter.families(statistics, self._max_blocks)
        yield from metrics_workers.worker_families(status.workers, statistics.workers)
        yield from metrics_fabric.fabric_families(self._fabric())
        yield from self._process_families()

    def _daemon_families(self, status: DaemonStatus) -> Iterator[Family]:
        yield BUILD.facts(__version__, platform.python_version())
        yield SERVING.facts(status.model, status.policy)
        yield READY.one(int(status.ready))
        yield DRAINING.one(int(status.draining))
        yield WAITING.one(status.waiting)
        yield RUNNING.one(status.running)
        yield CONNECTIONS.by({door: count() for door, count in self.connections.items()})

    def _process_families(self) -> Iterator[Family]:
        for found in self._process.collect():
            name = f"{found.name}_total" if found.type == "counter" else found.name
            metric = Metric(name, "counter" if found.type == "counter" else "gauge", found.documentation)
            yield Family(metric, [("", sample.value) for sample in found.samples])
