"""A daemon without sockets and with a clock of its own: real runtime, scheduler and metrics, workers that do what the
test says. And how to read what it exposes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from prebled.core.events import KvReported, StepsMeasured
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RunId, WorkerId
from prebled.daemon.fabric_reports import FabricStatistics
from prebled.daemon.metrics import Metrics
from prebled.daemon.runtime import Runtime
from prebled.daemon.tokenizing import Tokenizing
from prebled.messages import Beat, Capacity, Chunk, Done, Failed, KvChange, StepSample, Submit
from prebled.model_files import load_model_files
from prebled.settings import CoreSettings, LimitSettings

CAPACITY = Capacity("m", "sim", "sim", 64, 10_000, 900, 1000, 2048, 8)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Sender:
    """Stands for the fabric: remembers what it was told."""

    def __init__(self) -> None:
        self.sent: list[tuple[WorkerId, Submit]] = []

    def submit_nowait(self, worker_id: WorkerId, submit: Submit) -> bool:
        self.sent.append((worker_id, submit))
        return True

    def abort_nowait(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        pass


class MeteredDaemon:
    """`now`: the time, for the test to set. `tokens`, `done` and `failed` are about the newest run sent."""

    def __init__(self, model: Path, *workers: str, policy: str = "e2", limits: LimitSettings | None = None) -> None:
        core = CoreSettings()
        self.now = 100.0
        self.scheduler = GlobalScheduler(
            make_policy(policy, core), core, block_tokens=64, max_waiting=10, retry_after_s=1.0
        )
        self.sender = Sender()
        self.runtime = Runtime(
            self.scheduler,
            Tokenizing.load(load_model_files(str(model))),
            served_model_name="m",
            policy=policy,
            limits=limits or LimitSettings(),
            daemon_epoch=bytes(8),
            clock=lambda: self.now,
        )
        self.runtime.attach(self.sender)
        self.fabric_counts = dict.fromkeys(FabricStatistics.__struct_fields__, 0)
        self.metrics = Metrics(
            self.runtime, self.scheduler, lambda: FabricStatistics(**self.fabric_counts), max_blocks=core.max_blocks
        )
        for name in workers:
            self.ready(name)

    def ready(self, name: str, epoch: int = 1) -> None:
        self.runtime.worker_started(WorkerId(name), 7, epoch - 1)
        self.runtime.worker_known(WorkerId(name), Epoch(epoch), 7, "sim")
        self.runtime.worker_ready(WorkerId(name), Epoch(epoch), CAPACITY)

    def beat(self, name: str, *, queued: int = 0, running: int = 0, kv_used: int = 0) -> None:
        self.runtime.worker_beat(WorkerId(name), Beat(Epoch(1), "ready", 0, queued, running, kv_used))

    def measured(self, name: str, *steps: StepSample) -> None:
        self.runtime.deciding.handle(StepsMeasured(WorkerId(name), steps))

    def cache_changed(self, name: str, *changes: KvChange) -> None:
        self.runtime.deciding.handle(KvReported(WorkerId(name), changes))

    def lose(self, name: str) -> None:
        self.runtime.worker_lost(WorkerId(name), "test")

    def tokens(self, *tokens: int, cached: int = -1) -> None:
        worker_id, submit = self.sender.sent[-1]
        self.runtime.run_chunk(worker_id, Chunk(submit.run_id, tokens, cached))

    def done(self, reason: Any, output: int) -> None:
        worker_id, submit = self.sender.sent[-1]
        self.runtime.run_done(worker_id, Done(Epoch(1), submit.run_id, 1, reason, 5, 0, output))

    def failed(self, code: str) -> None:
        worker_id, submit = self.sender.sent[-1]
        self.runtime.run_failed(worker_id, Failed(Epoch(1), submit.run_id, code, "test"))

    def scrape(self) -> Scrape:
        """What Prometheus would see; the same in both formats, or the test fails."""
        plain = Scrape(self.metrics.expose("")[1].decode())
        strict = Scrape(self.metrics.expose(OPENMETRICS)[1].decode(), openmetrics=True)
        ours = [{k: v for k, v in one.series.items() if k[0].startswith("prebled_")} for one in (plain, strict)]
        assert ours[0] == ours[1]
        return plain


class Scrape:
    """One exposition, parsed. A series that is there twice is an error."""

    def __init__(self, text: str, *, openmetrics: bool = False) -> None:
        self.families = list((parse_openmetrics if openmetrics else parse_plain)(text))
        self.series: Series = {}
        for family in self.families:
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in self.series, key
                self.series[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """One series, by its name without `prebled_`."""
        return self.series[f"prebled_{name}", tuple(sorted(labels.items()))]

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """All series of a name, by their labels' values in the labels' order."""
        found = {key: value for key, value in self.series.items() if key[0] == f"prebled_{name}"}
        return {tuple(value for _, value in labels): value for (_, labels), value in found.items()}

    def counters(self) -> Series:
        """Everything that must never go down."""
        growing = {
            sample.name
            for family in self.families
            for sample in family.samples
            if family.type == "counter" or (family.type == "histogram" and not sample.name.endswith("_sum"))
        }
        return {key: value for key, value in self.series.items() if key[0] in growing}
