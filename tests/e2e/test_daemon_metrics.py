"""Metrics of a real daemon with simulated workers, as Prometheus would scrape them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from daemon_process import DaemonProcess
from prometheus_client.parser import text_string_to_metric_families as parse

from prebled import AsyncClient

Series = dict[tuple[str, tuple[str, ...]], float]

PROMPT = "The quick brown fox jumps over the lazy dog. " * 20


async def scrape(http: httpx.AsyncClient) -> Series:
    """Every series by its name without `prebled_` and its labels' values, in the order of the labels' names."""
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    series: Series = {}
    for family in parse(answer.text):
        for sample in family.samples:
            key = sample.name.removeprefix("prebled_"), tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in series, key
            series[key] = sample.value
    return series


async def scrape_until(http: httpx.AsyncClient, condition: Callable[[Series], bool]) -> Series:
    """Scrape until something is so."""
    async with asyncio.timeout(60):
        while not condition(series := await scrape(http)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return series


@pytest.fixture
async def http(daemon: DaemonProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=daemon.url, timeout=60) as client:
        yield client


def growing(series: Series) -> Series:
    return {key: value for key, value in series.items() if key[0].endswith(("_total", "_count", "_bucket"))}


def total(series: Series, name: str) -> float:
    """Over all workers."""
    return sum(value for key, value in series.items() if key[0] == name)


async def test_numbers_move_with_the_traffic(daemon: DaemonProcess, http: httpx.AsyncClient) -> None:
    daemon.start(env={"PREBLED_SIM__SPEED": "20"})
    daemon.wait_ready()
    before = await scrape(http)
    assert before["ready", ()] == 1
    assert before["workers", ("ready",)] == 2
    async with AsyncClient(daemon.native) as client:
        usages = []
        for _ in range(3):
            stream = await client.generate(PROMPT, max_tokens=8, ignore_eos=True)
            await stream.text()
            assert stream.usage is not None
            usages.append(stream.usage)
        await scrape_until(http, lambda series: series["connections", ("native",)] == 1)  # others are leaving
    body = {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert (await http.post("/v1/completions", json=body | {"model": "gpt-7"})).status_code == 404
    after = await scrape(http)
    assert after["requests_accepted_total", ()] == after["requests_finished_total", ("length",)] == 4
    assert after["requests_rejected_total", ("model_not_found",)] == 1
    assert after["generation_tokens_total", ()] == 3 * 8 + 5
    assert after["prompt_tokens_total", ()] == 4 * usages[0].prompt_tokens
    cached = sum(usage.cached_tokens for usage in usages) + usages[-1].cached_tokens
    assert after["cached_tokens_total", ()] == cached > 0
    assert after["decisions_total", ("explore",)] == 1
    assert after["decisions_total", ("exploit",)] == 3
    for name in ("time_to_first_token", "request_queue", "request_duration", "time_per_output_token"):
        assert after[f"{name}_seconds_count", ()] == 4
        assert after[f"{name}_seconds_bucket", ("+Inf",)] == 4
    assert 0 < after["time_to_first_token_seconds_sum", ()] < after["request_duration_seconds_sum", ()]
    assert after["http_requests_total", ("/v1/completions", "2xx")] == 1
    assert after["http_requests_total", ("/v1/completions", "4xx")] == 1
    assert after["fabric_frames_total", ()] > before["fabric_frames_total", ()]
    assert after["fabric_submits_total", ()] == 4
    for key, value in growing(before).items():
        assert after[key] >= value, key
    # Beats tell the steps, and frames what the caches hold.
    told = await scrape_until(
        http, lambda series: bool(total(series, "step_seconds_total") and total(series, "kv_blocks_stored_total"))
    )
    assert 0 < total(told, "step_model_seconds_total") <= total(told, "step_seconds_total")
    assert total(told, "step_duration_seconds_sum") == total(told, "step_seconds_total")
    assert told["fabric_snapshots_total", ()] >= 2


async def test_a_scrape_while_nothing_serves_yet(daemon: DaemonProcess, http: httpx.AsyncClient) -> None:
    daemon.start("--launcher", "external")
    daemon.wait(lambda status: not status["ready"])
    assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 503
    series = await scrape(http)
    assert (series["ready", ()], series["fabric_workers", ()]) == (0, 0)
    assert series["requests_rejected_total", ("no_worker_ready",)] == 1
    assert (await http.get("/ready")).status_code == 503


async def test_a_lost_worker_takes_no_count_with_it(daemon: DaemonProcess, http: httpx.AsyncClient) -> None:
    daemon.start()
    pids = {worker["id"]: worker["pid"] for worker in daemon.wait_ready()["workers"]}
    async with AsyncClient(daemon.native) as client:
        streams = [await client.generate(PROMPT, max_tokens=300, ignore_eos=True) for _ in range(4)]
        for stream in streams:
            await anext(aiter(stream))
        before = await scrape(http)
        assert before["requests_running", ()] == 4
        busy = max(pids, key=lambda name: before["worker_booked_requests", (name,)])
        os.kill(pids[busy], signal.SIGKILL)
        lost = await scrape_until(http, lambda series: series["fabric_workers_lost_total", ()] == 1)
        texts = await asyncio.gather(*(stream.text() for stream in streams))
    assert all(texts)
    back = await scrape_until(
        http, lambda series: series["workers", ("ready",)] == 2 and series["worker_restarts_total", (busy,)] == 1
    )
    assert back["requests_finished_total", ("length",)] == back["requests_accepted_total", ()] == 4
    assert back["requests_continued_total", ()] >= 1
    assert back["generation_tokens_total", ()] == 4 * 300
    assert back["worker_epoch", (busy,)] > before["worker_epoch", (busy,)]
    for earlier, later in ((before, lost), (lost, back)):
        for key, value in growing(earlier).items():
            assert later[key] >= value, key


async def test_both_listeners_and_a_drain(daemon: DaemonProcess, http: httpx.AsyncClient) -> None:
    daemon.start()
    daemon.wait_ready()
    transport = httpx.AsyncHTTPTransport(uds=daemon.http_socket)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://x") as unix,
        AsyncClient(daemon.native) as client,
    ):
        assert (await scrape(unix))["ready", ()] == (await scrape(http))["ready", ()] == 1
        stream = await client.generate(PROMPT, max_tokens=200, ignore_eos=True)
        await anext(aiter(stream))
        daemon.signal(signal.SIGTERM)
        draining = await scrape_until(unix, lambda series: series["draining", ()] == 1)
        assert draining["requests_running", ()] == 1
        await stream.text()
    assert await asyncio.to_thread(daemon.wait_exit) == 0


def test_nothing_but_our_own_and_the_process_s_is_told(daemon: DaemonProcess) -> None:
    """The registry that a whole process shares, which any library may write to, is not what is served."""
    daemon.start("--launcher", "external")
    daemon.wait(lambda status: not status["ready"])
    text = httpx.get(f"{daemon.url}/metrics").text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert {name for name in names if not name.startswith(("prebled_", "process_"))} == set()
