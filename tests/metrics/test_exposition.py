"""The whole exposition: what is there, what it is called, that it follows its owners, and that counters only grow."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metric_table
import msgspec
import pytest
from metered_daemon import CAPACITY, MeteredDaemon

from prebled.core.decisions import Place, Placed
from prebled.core.events import Tick
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.daemon import metrics_scheduling
from prebled.daemon.fabric_reports import FabricStatistics
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.metrics import METRICS
from prebled.daemon.metrics_fabric import fabric_families
from prebled.messages import KvCleared, KvRemoved, KvStored, StepSample

PROMPT = GenerateInput(prompt="Once upon a time " * 40, max_tokens=6)
SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_seconds", "_tokens"), "gauge": ("",)}


@pytest.fixture
def daemon(tiny_model: Path) -> MeteredDaemon:
    return MeteredDaemon(tiny_model, "w0", "w1")


def test_the_documented_names_are_those_exported(daemon: MeteredDaemon) -> None:
    ours = [metric.name for metric in METRICS]
    exported = [
        line.split()[2] for line in daemon.metrics.expose("")[1].decode().splitlines() if line.startswith("# TYPE ")
    ]
    assert sorted(name for name in exported if not name.startswith("process_")) == sorted(ours)
    assert len(set(exported)) == len(exported)
    written = metric_table.PATH.read_text(encoding="utf-8")
    assert written == metric_table.page(), "write it anew: python tests/metrics/metric_table.py"
    assert [line.split("`")[1] for line in written.splitlines() if line.startswith("| `prebled_")] == ours


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_and_meanings_follow_the_conventions(metric: Any) -> None:
    assert metric.name.startswith("prebled_")
    assert set(metric.name) <= {*string.ascii_lowercase, "_"}
    assert metric.name.endswith(SUFFIXES[metric.kind])
    assert metric.kind == "counter" or not metric.name.endswith("_total")
    assert metric.help.endswith(".")
    assert not set(metric.help) & {'"', "\\", "\n", "|"}


def test_every_count_of_the_fabric_is_exported() -> None:
    fields = FabricStatistics.__struct_fields__
    statistics = FabricStatistics(**{field: index for index, field in enumerate(fields)})
    exported = {
        family.metric.name.removeprefix("prebled_fabric_").removesuffix("_total"): dict(family.samples)[""]
        for family in fabric_families(statistics)
    }
    assert exported == msgspec.structs.asdict(statistics)


async def test_decisions_by_mode_and_worker(daemon: MeteredDaemon) -> None:
    for _ in range(3):
        await daemon.runtime.generate(PROMPT)
        daemon.tokens(50, cached=0)
        daemon.done("stop", 1)
    scrape = daemon.scrape()
    assert scrape.of("decisions_total") == {("exploit",): 2, ("explore",): 1}
    assert sorted(scrape.of("worker_placements_total").values()) == [0, 3]
    assert scrape("decide_seconds_count") == 3
    assert scrape("decide_seconds_sum") > 0
    assert scrape("tree_blocks") > 0
    assert scrape("tree_nodes") == 1
    assert scrape("tree_blocks_limit") == 4_000_000
    assert scrape("tree_window_requests") == 3


def test_adjustments_have_a_closed_set_of_names(daemon: MeteredDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["steered: w1 would cost less", "replicated: 3 share it", "replicated: 4 share it", "unheard of: 17", "w0"]
    decisions = [Place(RequestId("r"), Placed(WorkerId("w0"), "explore", "e2", 0, 9, (), (words,))) for words in said]
    with monkeypatch.context() as patched:
        patched.setattr(daemon.scheduler, "handle", lambda event, now: decisions)
        daemon.runtime.deciding.meter.handle(Tick(), 0.0)
    assert daemon.scrape().of("decisions_adjusted_total") == {
        ("rebalanced",): 0,
        ("replicated",): 2,
        ("steered",): 1,
        ("withdrawn",): 0,
        ("other",): 2,
    }


def test_the_core_s_own_counters_are_found_by_their_names(
    daemon: MeteredDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {
        "predictions": 10,
        "predictions_exact": 7,
        "cached_tokens_predicted": 640,
        "cached_tokens_actual": 600,
        "mispredicted_evicted": 2,
        "mispredicted_tokens_evicted": 128,
        "mispredicted_never_stored": 1,
        "placed_explore": 4,
        "rejected_saturated": 9,
        "ignored_Tick": 5,
        "sends_failed": 1,
    }
    statistics = daemon.scheduler.statistics()
    monkeypatch.setattr(daemon.scheduler, "statistics", lambda: msgspec.structs.replace(statistics, counters=counted))
    scrape = daemon.scrape()
    assert (scrape("predictions_total"), scrape("predictions_exact_total")) == (10, 7)
    assert (scrape("predicted_cached_tokens_total"), scrape("actual_cached_tokens_total")) == (640, 600)
    assert scrape.of("mispredictions_total") == {("evicted",): 2, ("never_stored",): 1}
    assert scrape.of("mispredicted_tokens_total") == {("evicted",): 128}
    assert scrape.of("decisions_total") == {("exploit",): 0, ("explore",): 4}
    assert scrape.of("scheduler_events_total") == {("ignored_Tick",): 5, ("sends_failed",): 1}
    assert scrape("requests_rejected_total", code="saturated") == 0  # the runtime's to count


async def test_workers_as_they_stand(daemon: MeteredDaemon) -> None:
    daemon.runtime.worker_known(WorkerId("w2"), Epoch(9), 7, "sim")
    daemon.beat("w0", queued=3, running=2, kv_used=640)
    await daemon.runtime.generate(PROMPT)
    placed_on = daemon.sender.sent[-1][0]
    scrape = daemon.scrape()
    assert scrape.of("workers") == {
        ("starting",): 0,
        ("loading",): 1,
        ("ready",): 2,
        ("draining",): 0,
        ("stopping",): 0,
        ("lost",): 0,
    }
    assert scrape("worker_info", worker="w0", state="ready", engine="sim", device="sim") == 1
    assert scrape("worker_info", worker="w2", state="loading", engine="sim", device="") == 1
    assert scrape("worker_queued_requests", worker="w0") == 3
    assert scrape("worker_running_requests", worker="w0") == 2
    assert scrape("worker_kv_used_tokens", worker="w0") == 640
    assert scrape("worker_kv_capacity_tokens", worker="w1") == CAPACITY.kv_tokens
    assert scrape("worker_epoch", worker="w2") == 9
    assert scrape("worker_booked_requests", worker=placed_on) == 1
    assert scrape("worker_load_seconds", worker=placed_on) > 0
    assert scrape("worker_held_tokens", worker=placed_on) > 0
    cost = daemon.scheduler.statistics().workers[0].cost
    assert scrape("worker_cost_seconds", worker="w0", coefficient="decode_base") == cost.decode_base_s
    assert scrape("worker_cost_seconds", worker="w0", coefficient="prefill_token") == cost.prefill_token_s


def test_steps_and_caches_by_worker(daemon: MeteredDaemon) -> None:
    daemon.measured("w0", step(0.02, 0.015, 0.001), step(0.04, 0.025, 0.002), step(9.0, 8.0, 0.0))
    daemon.cache_changed("w0", KvStored(b"", bytes(8 * 5)), KvStored(bytes(8), bytes(8 * 2)), KvRemoved(bytes(8 * 3)))
    daemon.cache_changed("w1", KvCleared())
    scrape = daemon.scrape()
    assert scrape("step_seconds_total", worker="w0") == pytest.approx(9.06)
    assert scrape("step_model_seconds_total", worker="w0") == pytest.approx(8.04)
    assert scrape("step_order_seconds_total", worker="w0") == pytest.approx(0.003)
    assert scrape("step_duration_seconds_bucket", worker="w0", le="0.02") == 1
    assert scrape("step_duration_seconds_bucket", worker="w0", le="5.0") == 2
    assert scrape("step_duration_seconds_count", worker="w0") == 3
    assert scrape("step_seconds_total", worker="w1") == 0
    assert scrape("kv_blocks_stored_total", worker="w0") == 7
    assert scrape("kv_removals_total", worker="w0") == 3
    assert scrape.of("kv_clears_total") == {("w0",): 0, ("w1",): 1}


def step(step_s: float, model_s: float, order_s: float) -> StepSample:
    return StepSample(0, 0, 0, 1, 64, step_s, model_s, order_s)


async def test_counters_never_go_down_over_a_worker_s_lives(daemon: MeteredDaemon) -> None:
    daemon.measured("w0", step(0.02, 0.015, 0.001))
    daemon.cache_changed("w0", KvStored(b"", bytes(8)))
    for _ in range(4):
        await daemon.runtime.generate(PROMPT)
        daemon.tokens(50, cached=0)
    before = daemon.scrape()

    def since(act: Callable[[], None]) -> None:
        nonlocal before
        act()
        after = daemon.scrape()
        for key, value in before.counters().items():
            assert after.series[key] >= value, key
        before = after

    since(lambda: daemon.lose("w0"))
    assert before("workers", state="lost") == 1
    assert ("w0",) not in before.of("worker_kv_capacity_tokens")
    assert ("w0",) not in before.of("worker_load_seconds")
    assert before("worker_info", worker="w0", state="lost", engine="sim", device="") == 1
    since(lambda: daemon.ready("w0", epoch=2))
    assert before("worker_epoch", worker="w0") == 2
    assert before("worker_restarts_total", worker="w0") == 1
    since(lambda: daemon.measured("w0", step(0.03, 0.02, 0.0)))
    assert before("step_seconds_total", worker="w0") == pytest.approx(0.05)
    assert before("step_duration_seconds_count", worker="w0") == 2


def test_workers_without_end_share_a_label(daemon: MeteredDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_scheduling, "MOST_WORKERS", 3)
    for index in range(2, 9):
        daemon.measured(f"w{index}", step(1.0, 1.0, 0.0))
    daemon.measured("w2", step(1.0, 1.0, 0.0))
    assert daemon.scrape().of("step_seconds_total") == {("w0",): 0, ("w1",): 0, ("w2",): 2, ("other",): 6}


def test_before_any_worker_is_there(tiny_model: Path) -> None:
    scrape = MeteredDaemon(tiny_model).scrape()
    assert scrape("ready") == 0
    assert set(scrape.of("workers").values()) == {0}
    assert scrape("serving_info", model="m", policy="e2") == 1
    assert scrape.series["process_start_time_seconds", ()] > 0


def test_many_daemons_in_one_process_count_apart(tiny_model: Path) -> None:
    one, other = MeteredDaemon(tiny_model, "w0"), MeteredDaemon(tiny_model, "w0")
    one.measured("w0", step(1.0, 1.0, 0.0))
    one.metrics.http.answered("/live", 200)
    assert one.scrape()("step_seconds_total", worker="w0") == 1
    assert other.scrape()("step_seconds_total", worker="w0") == 0
    assert other.scrape().of("http_requests_total") == {}


def test_five_hundred_workers(tiny_model: Path) -> None:
    daemon = MeteredDaemon(tiny_model, *(f"worker-{index}" for index in range(512)))
    for index in range(512):
        daemon.measured(f"worker-{index}", step(0.01 * index, 0.009 * index, 0.0))
    scrape = daemon.scrape()
    assert scrape("workers", state="ready") == 512
    assert len(scrape.of("step_duration_seconds_bucket")) == 512 * (len(metrics_scheduling.STEP_S) + 1)
    assert scrape("step_seconds_total", worker="worker-511") == pytest.approx(5.11)
