"""What only SGLang's engine has: ranks, processes that die, folders that are missing, arguments that are refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

import pytest
from engine_driver import Driver, prompt, submit

from prebled.errors import EngineFailed, SettingsError
from prebled.worker import sglang_args
from prebled.worker.sglang_engine import SGLangEngine

pytest_plugins = ("engine_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="session")
on_sglang = pytest.mark.parametrize(
    "engine_kind", [pytest.param("sglang", marks=pytest.mark.sglang)], indirect=True, scope="session"
)


@on_sglang
async def test_two_ranks_give_the_tokens_of_one(drivers: Mapping[str, Driver]) -> None:
    """More runs than fit beside each other, some cached: the ranks hang unless their queues are ordered alike."""
    first = [prompt(700 + n, 150) for n in range(4)]
    alone = await drivers["wide"].run(*first, *first, max_tokens=12)
    parallel = await drivers["parallel"].run(*first, *first, max_tokens=12)
    assert [one.tokens for one in parallel] == [one.tokens for one in alone]


@on_sglang
async def test_a_killed_scheduler_is_noticed_within_a_second(drivers: Mapping[str, Driver]) -> None:
    doomed = drivers["parallel"]
    assert isinstance(doomed.engine, SGLangEngine)
    doomed.submit(submit("lost", prompt(710, 100), 500))
    await doomed.step()
    pids = doomed.engine.pids
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(EngineFailed, match=f"pid {pids[1]}"):
        await doomed.wait_ends("lost")
    assert time.monotonic() - killed < 1.0
    await doomed.engine.stop()
    await doomed.engine.stop()
    with pytest.raises(EngineFailed):
        await doomed.engine.wait_step()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/model", "a/b/c"])
async def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(EngineFailed, match=f"{name} does not exist"):
        await SGLangEngine(name).start(lambda text: None)


async def test_arguments_that_are_not_to_be_set_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"sglang\.page_size"):
        SGLangEngine("m", server_args={"page_size": 1})
    with pytest.raises(SettingsError, match="'tpu'"):
        SGLangEngine("m", device="tpu")
    with pytest.raises(SettingsError, match="'fifo'"):
        SGLangEngine("m", queue_policy="fifo")


async def test_what_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    assert "SGLANG_PLUGINS" not in sglang_args.environment("fcfs", 1)
    monkeypatch.setenv("SGLANG_PLUGINS", "theirs")
    monkeypatch.setenv("SGLANG_NUMA_BIND_V2", "1")
    variables = sglang_args.environment("fcfs", 1)
    assert variables["SGLANG_PLUGINS"] == "theirs,prebled_cpu,prebled_queue"
    assert variables["SGLANG_NUMA_BIND_V2"] == "1"
    assert variables["PREBLED_QUEUE_POLICY"] == "fcfs"
    arguments = sglang_args.server_args(
        "m", block_tokens=64, kv_tokens=0, context_tokens=0, tp=1, queue_policy="lpm", more={"log_level": "info"}
    )
    assert (arguments["schedule_policy"], arguments["log_level"], arguments["page_size"]) == ("lpm", "info", 64)
    assert "max_total_tokens" not in arguments
