"""The whole way on the real runtime: two SGLang workers, real front ends, real kills. One daemon serves all tests in
the order they stand here, since a worker takes seconds to load; the last ones break things."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import DaemonProcess
from greedy_streams import greedy_texts

from prebled import AsyncClient
from prebled.errors import ConnectionLost

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

FRONT_END_PYTHON = Path(os.environ.get("FRONT_END_PYTHON", ".venv-front-ends/bin/python"))
PROMPTS = [f"Story {i}: " + "once upon a time there was a scheduler that knew every prefix. " * 4 for i in range(16)]


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[DaemonProcess]:
    folder = Path(tempfile.mkdtemp(prefix="pb-"))
    process = DaemonProcess(folder, tiny_model)
    try:
        process.start("--served-model-name", "tiny", "--kv-tokens", "32768", engine="sglang")
        process.wait_ready(2, timeout=240)
        yield process
    finally:
        process.close()
        shutil.rmtree(folder, ignore_errors=True)


async def test_async_client_second_turn_is_cached(served: DaemonProcess) -> None:
    messages = [{"role": "user", "content": "Why is the sky blue? " * 20}]
    async with AsyncClient(served.native) as client:
        first = await client.chat(messages, max_tokens=100, temperature=0.0, ignore_eos=True)
        pieces = [chunk.text async for chunk in first]
        assert len(pieces) > 2  # the model makes a token a millisecond: some arrive merged
        turns = [*messages, {"role": "assistant", "content": "".join(pieces)}, {"role": "user", "content": "And?"}]
        second = await client.chat(turns, max_tokens=4, temperature=0.0)
        await second.text()
        assert second.usage is not None
        assert second.usage.cached_tokens >= 64
        assert second.usage.cached_tokens % 64 == 0


@pytest.mark.skipif(not FRONT_END_PYTHON.exists(), reason="no virtual environment of front ends (make test builds it)")
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_openai_sdk_streams_a_chat(served: DaemonProcess, over: str) -> None:
    base_url, path = (f"{served.url}/v1", "") if over == "tcp" else ("http://localhost/v1", served.http_socket)
    script = Path(__file__).with_name("front_end_chat.py")
    command = [str(FRONT_END_PYTHON), str(script), base_url, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["model"] == "tiny"
    first, second = seen["turns"]
    assert first["pieces"] > 2
    assert second["cached"] >= 64
    assert second["prompt"] > first["prompt"]
    assert "gpt-7" in seen["refused"]


@pytest.mark.skipif(not FRONT_END_PYTHON.exists(), reason="no virtual environment of front ends (make test builds it)")
def test_llm_command_line_streams(served: DaemonProcess, tmp_path: Path) -> None:
    settings = f"- model_id: prebled\n  model_name: tiny\n  api_base: {served.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(settings)
    command = [str(FRONT_END_PYTHON.with_name("llm")), "-m", "prebled", "--key", "none", "-o", "max_tokens", "24"]
    done = subprocess.run(
        [*command, "Say something."],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 10


async def test_stop_string_cuts_the_text_and_frees_the_engine(served: DaemonProcess) -> None:
    async with AsyncClient(served.native) as client:
        whole = await client.generate(PROMPTS[3], max_tokens=40, temperature=0.0, ignore_eos=True)
        text = await whole.text()
        stop = text[20:24]
        cut = await client.generate(PROMPTS[3], max_tokens=40, temperature=0.0, ignore_eos=True, stop=[stop])
        assert await cut.text() == text[: text.index(stop)]
        assert cut.reason == "stop"
        assert cut.usage is not None
        assert cut.usage.completion_tokens < 40
    served.wait(lambda s: all(w["running"] == 0 for w in s["workers"]), timeout=5)


async def test_kill_9_of_a_worker_with_16_streams_open(served: DaemonProcess) -> None:
    workers = {w["id"]: w["pid"] for w in served.wait_ready(2)["workers"]}
    undisturbed = await greedy_texts(served.native, PROMPTS, 300)
    all_begun = asyncio.Event()
    streams = asyncio.create_task(greedy_texts(served.native, PROMPTS, 300, all_begun))
    await all_begun.wait()
    os.kill(workers["w0"], signal.SIGKILL)
    assert not streams.done()
    assert await streams == undisturbed
    counters = served.wait_ready(2, timeout=120)["counters"]
    assert counters["requests_continued"] > 0
    assert counters.get("requests_failed", 0) == 0


async def test_workers_survive_a_killed_daemon(served: DaemonProcess) -> None:
    pids = sorted(served.worker_pids())
    async with AsyncClient(served.native) as client:
        stream = await client.generate(PROMPTS[0], max_tokens=10_000, ignore_eos=True)
        await anext(aiter(stream))
        served.signal(signal.SIGKILL)
        served.wait_exit()
        with pytest.raises(ConnectionLost):
            await stream.text()
    assert served.best_restart_seconds(below=2.0) < 2.0
    served.wait_ready(2)
    assert sorted(served.worker_pids()) == pids
    served.wait(lambda s: all(w["running"] == 0 and w["kv_used_tokens"] == 0 for w in s["workers"]), timeout=10)
    assert len(await greedy_texts(served.native, PROMPTS, 4)) == 16
