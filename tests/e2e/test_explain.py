"""`prebled explain` on live requests of a daemon with simulated workers."""

from __future__ import annotations

import json
import os
import signal

import msgspec
import pytest
from daemon_process import DaemonProcess

from prebled import AsyncClient
from prebled.core.decisions import Explanation
from prebled.errors import NotFound, PromptTooLong

SHARED = list(range(10, 10 + 64 * 20))


def explained(daemon: DaemonProcess, request_id: str) -> Explanation:
    done = daemon.cli("explain", request_id, "--json", "--connect", daemon.native)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Explanation)


async def test_placements_are_explained_while_they_run_and_afterwards(daemon: DaemonProcess) -> None:
    daemon.start(env={"PREBLED_LOG_LEVEL": "debug"})
    daemon.wait_ready()
    tokens = [token % 200 + 5 for token in SHARED]
    async with AsyncClient(daemon.native) as client:
        first = await client.generate([*tokens, 7], max_tokens=4, ignore_eos=True)
        await first.text()
        cold = explained(daemon, first.request_id)
        assert cold.placement is not None
        assert (cold.placement.mode, cold.placement.matched_tokens, cold.cached_tokens) == ("explore", 0, 0)
        second = await client.generate([*tokens, 8], max_tokens=2000, ignore_eos=True)
        await anext(aiter(second))
        warm = await client.explain(second.request_id)
        assert warm.placement is not None
        assert warm.placement.worker_id == cold.placement.worker_id
        assert (warm.placement.mode, warm.placement.matched_tokens) == ("exploit", len(tokens))
        assert (warm.cached_tokens, warm.placements) == (len(tokens), 1)
        assert {one.worker_id for one in warm.placement.candidates} == {"w0", "w1"}
        await second.aclose()
        with pytest.raises(NotFound, match="no-such"):
            await client.explain("no-such")
    lines = [json.loads(line) for line in daemon.log_path.read_text().splitlines() if '"placed"' in line]
    assert [(line["request_id"], line["mode"]) for line in lines] == [
        (first.request_id, "explore"),
        (second.request_id, "exploit"),
    ]


async def test_a_refusal_is_explained_and_a_continued_request_shows_its_newest_placement(daemon: DaemonProcess) -> None:
    daemon.start()
    pids = {worker["id"]: worker["pid"] for worker in daemon.wait_ready()["workers"]}
    async with AsyncClient(daemon.native) as client:
        stream = await client.generate("Tell me more.", max_tokens=400, ignore_eos=True)
        await anext(aiter(stream))
        before = await client.explain(stream.request_id)
        assert before.placement is not None
        os.kill(pids[before.placement.worker_id], signal.SIGKILL)
        assert len(await stream.text()) > 0
        after = await client.explain(stream.request_id)
        assert after.placement is not None
        assert (after.placements, after.placement.worker_id != before.placement.worker_id) == (2, True)
        with pytest.raises(PromptTooLong):
            await client.generate([5] * 40_000, max_tokens=4)


async def test_a_request_that_left_its_prefix_for_a_shorter_queue_says_so(daemon: DaemonProcess) -> None:
    daemon.start(env={"PREBLED_SIM__SPEED": "0.25"})  # prefills of 20,000 tokens take ten seconds
    daemon.wait_ready()
    tokens = [token % 200 + 5 for token in SHARED]
    async with AsyncClient(daemon.native) as client:
        home = await client.generate([*tokens, 7], max_tokens=1, ignore_eos=True)
        await home.text()
        cold = explained(daemon, home.request_id).placement
        short = await client.generate([3] * 15_000, max_tokens=1)
        long = await client.generate([4] * 30_000, max_tokens=1)
        moved = await client.generate([*tokens, 8], max_tokens=1)
        printed = daemon.cli("explain", moved.request_id, "--connect", daemon.native).stdout
        placement = explained(daemon, moved.request_id).placement
        beside, busy = (explained(daemon, stream.request_id).placement for stream in (short, long))
    assert cold
    assert beside
    assert busy
    assert placement
    assert (cold.worker_id == busy.worker_id, placement.worker_id) == (True, beside.worker_id)
    assert placement.adjusted[0].startswith(f"rebalanced: {cold.worker_id} holds {len(tokens)} more tokens")
    assert placement.adjusted[0] in printed
    assert placement.mode == "explore"
