"""How a worker finds its daemon and greets it: over real sockets, against a scripted daemon."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from link_stage import collect, make_link, running, sim_engine
from scripted_daemon import ScriptedDaemon, ScriptedEngine
from sim_runs import VOCAB_SIZE, expected_tokens, prompt, submit

from prebled.core.types import Epoch, WorkerId
from prebled.errors import SettingsError
from prebled.messages import PROTOCOL_VERSION, Batch, Beat, Failed, Hello, Ready, Refused, Welcome


async def test_ready_waits_for_the_subscription(make_daemon: Callable[..., ScriptedDaemon], address: str) -> None:
    daemon = make_daemon(subscribe=False)
    async with running(make_link(address, sim_engine())):
        assert await daemon.hear(Hello) == Hello(PROTOCOL_VERSION, WorkerId("w0"), Epoch(41), 1234, "sim")
        await daemon.hear(Hello)  # again and again until it is welcomed
        await daemon.say(Welcome(daemon.epoch))
        for _ in range(5):
            assert (await daemon.hear(Beat, skip=(Hello,))).phase == "ready"  # the engine is loaded all the while
        daemon.bind_events()
        daemon.subscribe(b"daemon-0")  # of another life
        for _ in range(5):
            await daemon.hear(Beat, skip=())
        daemon.subscribe(daemon.epoch)
        ready = await daemon.hear(Ready)
        assert (ready.epoch, ready.next_seq) == (41, 1)
        assert (ready.capacity.engine, ready.capacity.device, ready.capacity.vocab_size) == ("sim", "sim", VOCAB_SIZE)


async def test_loading_is_told_and_ready_waits_for_it(daemon: ScriptedDaemon, address: str) -> None:
    engine = ScriptedEngine()
    async with running(make_link(address, engine)):
        await daemon.hear(Hello)
        await daemon.say(Welcome(daemon.epoch))
        assert (await daemon.hear(Beat, skip=(Hello,))).phase == "loading"
        engine.report("shard 3 of 8")
        await daemon.hear_beat(lambda beat: beat.detail == "shard 3 of 8")
        await daemon.say(Batch((submit("early", [1], 1),)))
        refused = await daemon.hear(Failed)
        assert (refused.run_id, refused.code, refused.retryable) == ("early", "no_worker_ready", True)
        engine.loaded.set()
        await daemon.hear(Ready)
        assert (await daemon.hear(Beat)).detail == ""


async def test_a_second_welcome_is_not_answered(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine())):
        await daemon.greet()
        await daemon.say(Welcome(daemon.epoch))
        for _ in range(5):
            await daemon.hear(Beat, skip=())


async def test_a_refused_worker_exits_and_names_the_reason(daemon: ScriptedDaemon, address: str) -> None:
    async with running(make_link(address, sim_engine())) as link:
        await daemon.hear(Hello)
        await daemon.say(Refused("protocol 1 is spoken here, not 2"))
        ending = await link
    assert ending.code == 1
    assert "protocol 1 is spoken here, not 2" in ending.reason


async def test_a_bad_address_is_named(short_dir: Path) -> None:
    with pytest.raises(SettingsError, match="'unix:'"):
        await make_link("unix:", sim_engine()).run()


async def test_over_tcp() -> None:
    port = next(port for port in range(41_000, 60_000, 2) if _is_free(port) and _is_free(port + 1))
    daemon = ScriptedDaemon(f"tcp:127.0.0.1:{port}")
    async with running(make_link(f"tcp://localhost:{port}", sim_engine())):
        await daemon.greet()
        await daemon.say(Batch((submit("a", prompt(1, 20), 5),)))
        tokens, _ = await collect(daemon, 1)
    daemon.close()
    assert tokens == {"a": expected_tokens(prompt(1, 20), 5)}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
