"""Requests in the metrics: each accepted one is counted once, and times are those of the daemon's clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from metered_daemon import MeteredDaemon

from prebled.core.events import Tick
from prebled.daemon.gateway import GenerateInput
from prebled.errors import Draining, ModelNotFound, Saturated, SlowReader, Unavailable, WorkerFailed
from prebled.settings import LimitSettings

PROMPT = GenerateInput(prompt="Once upon a time", max_tokens=6)


@pytest.fixture
def daemon(tiny_model: Path) -> MeteredDaemon:
    return MeteredDaemon(tiny_model, "w0", "w1")


async def test_times_of_a_request(daemon: MeteredDaemon) -> None:
    stream = await daemon.runtime.generate(PROMPT)
    prompt_tokens = len(daemon.sender.sent[-1][1].tokens) // 4
    daemon.now += 0.25
    daemon.tokens(50, cached=2)
    daemon.now += 0.5
    daemon.tokens(51, 52)
    daemon.now += 0.125
    daemon.tokens(53)
    daemon.now += 0.125
    daemon.done("length", 4)
    scrape = daemon.scrape()
    assert scrape("time_to_first_token_seconds_sum") == 0.25
    assert scrape("time_to_first_token_seconds_bucket", le="0.2") == 0
    assert scrape("time_to_first_token_seconds_bucket", le="0.3") == 1
    assert scrape("inter_token_seconds_count") == 2  # by chunk
    assert scrape("inter_token_seconds_sum") == 0.625
    assert scrape("time_per_output_token_seconds_sum") == 0.25  # 0.75 s after the first for 3 more
    assert scrape("request_duration_seconds_sum") == 1.0
    placement = daemon.runtime.explain(stream.request_id).placement
    assert placement is not None
    (prefill_s,) = (one.prefill_s for one in placement.candidates if one.worker_id == placement.worker_id)
    assert prefill_s > 0
    assert scrape("request_queue_seconds_sum") == pytest.approx(0.25 - prefill_s)
    assert scrape("generation_tokens_total") == 4
    assert scrape("prompt_tokens_total") == prompt_tokens
    assert scrape("cached_tokens_total") == 2
    assert scrape("decide_seconds_count") == 1


async def test_a_continued_request_is_one_request(daemon: MeteredDaemon) -> None:
    await daemon.runtime.generate(PROMPT)
    daemon.now += 1.0
    daemon.tokens(50, cached=1)
    daemon.lose(daemon.sender.sent[-1][0])
    daemon.now += 2.0
    daemon.tokens(51, cached=0)
    daemon.done("stop", 1)
    scrape = daemon.scrape()
    assert scrape("requests_accepted_total") == scrape("requests_finished_total", reason="stop") == 1
    assert scrape("requests_continued_total") == 1
    assert scrape("time_to_first_token_seconds_count") == 1
    assert scrape("request_queue_seconds_count") == 2  # it waited at each worker
    assert scrape("inter_token_seconds_sum") == 2.0  # the client saw this gap
    assert scrape("cached_tokens_total") == 1  # the first placement's, as in `usage`
    assert sum(scrape.of("worker_placements_total").values()) == 2


async def test_every_accepted_request_ends_once(tiny_model: Path) -> None:
    daemon = MeteredDaemon(tiny_model, "w0", limits=LimitSettings(max_runs=1))
    await daemon.runtime.generate(PROMPT)
    daemon.tokens(50, cached=0)
    daemon.done("stop", 1)
    await daemon.runtime.generate(PROMPT)
    daemon.tokens(*range(50, 56), cached=0)
    daemon.done("length", 6)
    given_up = await daemon.runtime.generate(PROMPT)
    await given_up.aclose()
    await given_up.aclose()
    await daemon.runtime.generate(PROMPT)
    daemon.failed("engine_failed")
    lost = await daemon.runtime.generate(PROMPT)
    daemon.lose("w0")
    with pytest.raises(WorkerFailed):
        await anext(lost)
    daemon.ready("w0", epoch=2)
    await daemon.runtime.generate(PROMPT)
    cut_off = await daemon.runtime.generate(PROMPT)
    assert daemon.scrape()("requests_waiting") == 2
    daemon.tokens(50, cached=0)
    assert daemon.scrape()("requests_running") == 1
    daemon.runtime.fail_all(Draining("the daemon stops"))
    await cut_off.aclose()
    scrape = daemon.scrape()
    assert scrape.of("requests_finished_total") == {("stop",): 1, ("length",): 1}
    failed = {code: count for code, count in scrape.of("requests_failed_total").items() if count}
    assert failed == {("engine_failed",): 1, ("worker_failed",): 1, ("draining",): 2}
    assert scrape("requests_cancelled_total") == 1
    assert scrape("requests_accepted_total") == 7
    assert scrape("requests_waiting") == scrape("requests_running") == 0
    status = daemon.runtime.status().counters
    assert status["requests_accepted"] == 7
    assert (status["requests_finished"], status["requests_failed"], status["requests_cancelled"]) == (2, 4, 1)


async def test_a_slow_reader_failed_and_did_not_cancel(tiny_model: Path) -> None:
    daemon = MeteredDaemon(tiny_model, "w0", limits=LimitSettings(stream_tokens=2))
    stream = await daemon.runtime.generate(PROMPT)
    daemon.tokens(50, 51, 52, cached=0)
    error = await stream.wait_failed()
    assert isinstance(error, SlowReader)
    scrape = daemon.scrape()
    assert scrape("requests_failed_total", code="slow_reader") == 1
    assert scrape("requests_cancelled_total") == 0


async def test_a_continued_request_that_nobody_takes_failed(tiny_model: Path) -> None:
    daemon = MeteredDaemon(tiny_model, "w0")
    stream = await daemon.runtime.generate(PROMPT)
    daemon.lose("w0")
    assert daemon.scrape()("requests_parked") == 1
    daemon.now += 1000
    daemon.runtime.deciding.handle(Tick())
    with pytest.raises(Unavailable):
        await anext(stream)
    scrape = daemon.scrape()
    assert scrape("requests_parked") == 0
    assert scrape("requests_failed_total", code="no_worker_ready") == 1
    assert scrape("requests_rejected_total", code="no_worker_ready") == 0


async def test_rejections_by_code_and_no_label_of_a_client_s(daemon: MeteredDaemon) -> None:
    for model in ("gpt-7", "x" * 1000, 'evil"} 1\n'):
        with pytest.raises(ModelNotFound):
            await daemon.runtime.generate(GenerateInput(prompt="x", model=model))
    for _ in range(10):
        await daemon.runtime.generate(PROMPT)
    with pytest.raises(Saturated):
        await daemon.runtime.generate(GenerateInput(prompt="x", cache_salt="secret-salt", request_id="secret-id"))
    await daemon.runtime.drain(0.0)
    with pytest.raises(Draining):
        await daemon.runtime.generate(PROMPT)
    scrape = daemon.scrape()
    rejected = {code: count for code, count in scrape.of("requests_rejected_total").items() if count}
    assert rejected == {("model_not_found",): 3, ("saturated",): 1, ("draining",): 1}
    assert (scrape("requests_accepted_total"), scrape("draining"), scrape("ready")) == (10, 1, 0)
    text = daemon.metrics.expose("")[1].decode()
    assert not any(word in text for word in ("gpt-7", "xxxx", "evil", "secret"))
