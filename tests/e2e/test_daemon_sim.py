"""The daemon as a user runs it: `prebled start` in its own process, two simulated workers, real sockets throughout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from daemon_process import DaemonProcess
from greedy_streams import greedy_texts

from prebled import AsyncClient
from prebled.errors import ConnectionLost, PromptTooLong, Unavailable

PROMPTS = [f"Request {i}. " + "The quick brown fox jumps over the lazy dog. " * (3 + i) for i in range(16)]


async def test_second_turn_finds_the_first_in_the_cache(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    messages = [{"role": "user", "content": "Tell me about prefix caches. " * 20}]
    async with AsyncClient(daemon.native) as client:
        first = await client.chat(messages, max_tokens=40, temperature=0.0)
        answer = await first.text()
        assert first.usage is not None
        assert first.usage.cached_tokens == 0
        turns = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
        second = await client.chat(turns, max_tokens=8, temperature=0.0)
        await second.text()
        assert second.usage is not None
        assert second.usage.cached_tokens >= 64


async def test_kill_9_of_a_worker_loses_and_doubles_no_token(daemon: DaemonProcess) -> None:
    daemon.start()
    pids = {w["id"]: w["pid"] for w in daemon.wait_ready()["workers"]}
    undisturbed = await greedy_texts(daemon.native, PROMPTS, 60)
    all_begun = asyncio.Event()
    streams = asyncio.create_task(greedy_texts(daemon.native, PROMPTS, 60, all_begun))
    await all_begun.wait()
    os.kill(pids["w0"], signal.SIGKILL)
    assert not streams.done()
    assert await streams == undisturbed
    after = daemon.wait_ready(2, timeout=30)
    assert after["counters"]["requests_continued"] > 0
    restarted = next(w for w in after["workers"] if w["id"] == "w0")
    assert restarted["pid"] != pids["w0"]
    assert restarted["restarts"] == 1


async def test_workers_outlive_a_killed_daemon(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    pids = sorted(daemon.worker_pids())
    async with AsyncClient(daemon.native) as client:
        stream = await client.generate(PROMPTS[0], max_tokens=2000, ignore_eos=True)
        await anext(aiter(stream))
        daemon.signal(signal.SIGKILL)
        daemon.wait_exit()
        with pytest.raises(ConnectionLost):
            await stream.text()
    assert daemon.best_restart_seconds(below=2.0) < 2.0
    daemon.wait_ready(2)
    assert sorted(daemon.worker_pids()) == pids
    daemon.wait(lambda s: all(w["running"] == 0 and w["kv_used_tokens"] == 0 for w in s["workers"]), timeout=5)
    assert len(await greedy_texts(daemon.native, PROMPTS, 5)) == 16


async def test_sigterm_drains_and_stops_the_workers(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    pids = daemon.worker_pids()
    async with AsyncClient(daemon.native) as client:
        stream = await client.generate(PROMPTS[0], max_tokens=40, ignore_eos=True)
        chunks = aiter(stream)
        await anext(chunks)
        daemon.signal(signal.SIGTERM)
        tokens = [token async for chunk in chunks for token in chunk.tokens]
        assert stream.reason == "length"
        assert len(tokens) >= 30
    assert daemon.wait_exit() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_draining_refuses_new_requests(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    async with AsyncClient(daemon.native) as client, httpx.AsyncClient(base_url=daemon.url) as http:
        stream = await client.generate(PROMPTS[0], max_tokens=200, ignore_eos=True)
        await anext(aiter(stream))
        assert (await http.get("/ready")).status_code == 200
        daemon.signal(signal.SIGTERM)
        await asyncio.to_thread(daemon.wait, lambda s: s["draining"], timeout=10)
        assert (await http.get("/ready")).status_code == 503
        with pytest.raises(Unavailable, match="draining"):
            await client.generate("hello", max_tokens=1)
        assert (await http.get("/live")).status_code == 200
        await stream.text()
    assert daemon.wait_exit() == 0


async def test_second_sigterm_stops_now(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    async with AsyncClient(daemon.native) as client:
        stream = await client.generate(PROMPTS[0], max_tokens=5000, ignore_eos=True)
        await anext(aiter(stream))
        daemon.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert daemon.process is not None
        assert daemon.process.poll() is None
        daemon.signal(signal.SIGTERM)
        daemon.wait_exit(10)


async def test_waiting_bound_answers_429_and_harms_nobody(daemon: DaemonProcess) -> None:
    daemon.start(env={"PREBLED_LIMITS__MAX_WAITING": "4", "PREBLED_SIM__MAX_RUNNING": "1"})
    daemon.wait_ready()
    body = {"prompt": "hello there, how are you?", "max_tokens": 20, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=daemon.url, timeout=60) as http:
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(24)))
    refused = [a for a in answers if a.status_code == 429]
    served = [a for a in answers if a.status_code == 200]
    assert refused
    assert len(served) + len(refused) == 24
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
    assert refused[0].json()["error"]["code"] == "saturated"
    assert all(a.json()["usage"]["completion_tokens"] == 20 for a in served)


async def test_no_worker_is_503_with_retry_after(daemon: DaemonProcess) -> None:
    daemon.start("--launcher", "external")
    daemon.wait(lambda s: not s["ready"])
    async with httpx.AsyncClient(base_url=daemon.url) as http:
        answer = await http.post("/v1/completions", json={"prompt": "hello"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "no_worker_ready"
        assert answer.headers["x-request-id"]
        assert (await http.get("/ready")).status_code == 503


async def test_bad_requests_name_the_value_and_change_nothing(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    cases = [
        ({"prompt": "x", "model": "gpt-7"}, 404, "gpt-7"),
        ({"prompt": ""}, 400, "empty"),
        ({"prompt": [999_999]}, 400, "999999"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "word " * 60_000}, 400, "32768"),
        ({"prompt": "x", "temperature": "hot"}, 400, "temperature"),
        ({"prompt": "x", "n": 2}, 400, "n"),
        ({"prompt": "x", "logprobs": 1}, 400, "logprobs"),
    ]
    async with httpx.AsyncClient(base_url=daemon.url, timeout=30) as http, AsyncClient(daemon.native) as client:
        bystander = await client.generate(PROMPTS[1], max_tokens=60, ignore_eos=True)
        for body, status, named in cases:
            answer = await http.post("/v1/completions", json=body)
            assert (answer.status_code, named in answer.json()["error"]["message"]) == (status, True), answer.text
        broken = await http.post("/v1/completions", content=b'{"prompt": ')
        assert broken.status_code == 400
        with pytest.raises(PromptTooLong):
            await client.generate(list(range(5, 105)) * 400, max_tokens=1)
        await bystander.text()
        assert bystander.usage is not None
        assert bystander.usage.completion_tokens == 60


async def test_a_vanished_client_frees_the_engine(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    body = json.dumps({"prompt": "hello", "max_tokens": 5000, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    connection = socket.create_connection(("127.0.0.1", daemon.http_port))
    connection.sendall(head + body)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    daemon.wait(lambda s: sum(w["running"] for w in s["workers"]) == 1, timeout=5)
    connection.close()
    daemon.wait(lambda s: sum(w["running"] for w in s["workers"]) == 0, timeout=5)


async def test_a_client_that_never_reads_is_ended_alone(daemon: DaemonProcess) -> None:
    daemon.start(env={"PREBLED_LIMITS__STREAM_TOKENS": "100", "PREBLED_SIM__SPEED": "1000"})
    daemon.wait_ready()
    body = json.dumps({"prompt": "hello", "max_tokens": 30_000, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    sleeper = socket.socket()
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sleeper.connect(("127.0.0.1", daemon.http_port))
    sleeper.sendall(head + body)
    daemon.wait(lambda s: s["counters"].get("requests_accepted", 0) == 1, timeout=10)
    async with AsyncClient(daemon.native) as client:
        reader = await client.generate("hello you", max_tokens=500, ignore_eos=True)
        await reader.text()
        assert reader.usage is not None
        assert reader.usage.completion_tokens == 500
    daemon.wait(lambda s: s["counters"].get("requests_failed", 0) == 1, timeout=60)
    daemon.wait(lambda s: sum(w["running"] for w in s["workers"]) == 0, timeout=5)
    sleeper.close()


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["--model", "/no/such/folder"], 1, "/no/such/folder"),
        (["--policy", "guess"], 2, "guess"),
        (["--engine", "abacus"], 2, "abacus"),
        (["--http", "127.0.0.1:99999"], 2, "99999"),
    ],
)
def test_start_refuses_bad_settings_in_one_line(daemon: DaemonProcess, args: list[str], code: int, named: str) -> None:
    daemon.start(*args)
    assert daemon.wait_exit() == code
    last = daemon.log_path.read_text().strip().splitlines()[-1]
    assert named in last
    assert last.startswith("prebled: ")


def test_a_port_in_use_is_named(daemon: DaemonProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", daemon.http_port))
        taken.listen()
        daemon.start()
        assert daemon.wait_exit() == 1
    assert f"127.0.0.1:{daemon.http_port}" in daemon.log_path.read_text().strip().splitlines()[-1]


def test_a_second_daemon_on_the_same_runtime_directory_is_refused(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    first = daemon.process
    daemon.restart()
    assert daemon.wait_exit() == 1
    daemon.process = first
    assert first is not None
    assert str(first.pid) in daemon.log_path.read_text()
    assert daemon.status() is not None


def test_an_external_worker_dials_in(daemon: DaemonProcess, short_dir: Path) -> None:
    fabric = f"unix:{short_dir}/fabric.sock"
    daemon.start("--launcher", "external", env={"PREBLED_FABRIC_ADDRESS": fabric})
    command = [sys.executable, "-m", "prebled.cli", "worker", "--id", "w7", "--fabric", fabric]
    command += ["--engine", "sim", "--model", str(daemon.model)]
    worker = subprocess.Popen(command, env=daemon.env)
    try:
        status = daemon.wait_ready(1)
        assert [(w["id"], w["pid"]) for w in status["workers"]] == [("w7", worker.pid)]
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0
        assert worker.poll() is None  # an external worker is not the daemon's to stop
    finally:
        worker.terminate()
        assert worker.wait(20) == 0


def test_bench_serve_counts_what_the_daemon_did(daemon: DaemonProcess, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [{"query": f"query {i}", "tools": [{"name": f"tool {i % 5} " * 200}]} for i in range(40)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    daemon.start(env={"PREBLED_SIM__SPEED": "50", "PREBLED_LIMITS__MAX_WAITING": "4"})
    daemon.wait_ready()
    args = [
        "--model",
        str(daemon.model),
        "--texts",
        str(texts),
        "--requests",
        "40",
        "--lists",
        "5",
        "--max-tokens",
        "5",
    ]
    done = daemon.cli("bench", "serve", "--url", daemon.native, *args, "--concurrency", "8", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["completed"], report["failed"]) == (40, 0)  # told to come back, it came back
    assert 0.3 < report["hit_ratio"] <= report["ideal_hit_ratio"]
    assert 0 < report["ttft_s"]["p50"] <= report["e2e_s"]["p50"] <= report["wall_s"]
    status = daemon.status()
    assert status is not None
    assert status["counters"]["requests_finished"] == 40


@pytest.mark.parametrize("door", ["native", "url"])
def test_bench_serve_sends_a_trace_that_shares_as_it_says(daemon: DaemonProcess, tmp_path: Path, door: str) -> None:
    trace = tmp_path / "shared.jsonl"
    rows = [
        {"arrival_ms": 5 * i, "input_tokens": 300, "output_tokens": 3, "session": None, "hash_runs": [0, 3, 10 + i, 1]}
        for i in range(12)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    daemon.start(workers=1, env={"PREBLED_SIM__SPEED": "50"})
    daemon.wait_ready(1)
    args = ["--trace", str(trace), "--block-tokens", "64", "--concurrency", "1", "--max-tokens", "2", "--json", "-"]
    done = daemon.cli("bench", "serve", "--url", getattr(daemon, door), *args)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["completed"], report["prompt_tokens"]) == (12, 12 * 300)
    assert report["cached_tokens"] == 11 * 3 * 64  # one at a time on one worker: all but the first find three blocks
    assert report["hit_ratio"] == report["ideal_hit_ratio"]
