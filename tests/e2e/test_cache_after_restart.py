"""A new daemon knows what its workers hold before it places anything."""

from __future__ import annotations

import signal

from daemon_process import DaemonProcess

from prebled import AsyncClient
from prebled.core.decisions import Explanation

PROMPT = [5 + number * 7 % 1000 for number in range(1000)]


async def explained(daemon: DaemonProcess, prompt: list[int]) -> Explanation:
    async with AsyncClient(daemon.native) as client:
        stream = await client.generate(prompt, max_tokens=4, ignore_eos=True)
        await stream.text()
        return await client.explain(stream.request_id)


async def test_after_kill_9_the_first_request_goes_where_its_prefix_is(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.wait_ready()
    before = await explained(daemon, [*PROMPT, 1])
    assert before.placement is not None
    assert before.placement.matched_tokens == 0
    daemon.signal(signal.SIGKILL)
    daemon.wait_exit()
    daemon.restart()
    daemon.wait_ready()
    after = await explained(daemon, [*PROMPT, 2])
    assert after.placement is not None
    assert after.placement.worker_id == before.placement.worker_id
    assert after.placement.matched_tokens == after.cached_tokens == 960
    assert after.mispredicted is None
