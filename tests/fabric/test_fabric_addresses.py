"""Where the fabric binds, and on which loop it runs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from fabric_stage import EPOCH, MODEL, QUICK, open_stage
from scripted_worker import Recorder, ScriptedWorker

from prebled.core.types import RunId
from prebled.daemon.fabric import Fabric
from prebled.errors import SettingsError
from prebled.messages import Chunk, Tokens, encode


async def test_an_address_in_use_is_a_settings_error_that_names_it(unused_tcp_port: int) -> None:
    address = f"tcp:127.0.0.1:{unused_tcp_port}"
    first = Fabric(address, EPOCH, Recorder(), QUICK, block_tokens=64, model=MODEL)
    first.start()
    second = Fabric(address, EPOCH, Recorder(), QUICK, block_tokens=64, model=MODEL)
    with pytest.raises(SettingsError, match=str(unused_tcp_port)):
        second.start()
    first.close()
    second.close()


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_it_works_over_tcp(host: str, unused_tcp_port_factory: Callable[[], int]) -> None:
    if host == "[::1]" and not has_ipv6_loopback():
        pytest.skip("no IPv6 here")
    recorder = Recorder()
    for _ in range(10):  # two ports in a row are wanted, and only one of them is known to be free
        address = f"tcp:{host}:{unused_tcp_port_factory()}"
        fabric = Fabric(address, EPOCH, recorder, QUICK, block_tokens=64, model=MODEL)
        with contextlib.suppress(SettingsError):
            fabric.start()
            break
    worker = ScriptedWorker(address)
    await worker.join()
    await recorder.wait("ready")
    worker.close()
    fabric.close()


def test_a_daemon_epoch_has_eight_bytes() -> None:
    with pytest.raises(SettingsError, match="abc"):
        Fabric("unix:/tmp/x", b"abc", None, QUICK, block_tokens=64, model=MODEL)  # type: ignore[arg-type]


def test_it_works_on_uvloop_and_keeps_up_with_a_burst(short_dir: Path) -> None:
    frames, chunks = 300, 64
    runs = [f"r{n}" for n in range(chunks)]

    async def main() -> None:
        async with open_stage(short_dir) as stage:
            worker = await stage.ready_worker()
            await stage.start_runs(worker, *runs)
            for seq in range(1, frames + 1):
                step = Tokens(worker.epoch, seq, tuple(Chunk(RunId(run), (seq,)) for run in runs))
                await worker.publish_raw(worker.topic, encode(step))
            worker.seq = frames
            for run in runs:
                await worker.done(run)
            await stage.recorder.wait("done", chunks)
            for run in runs:
                assert stage.recorder.tokens(run) == list(range(1, frames + 1))

    uvloop.run(main())


async def test_a_next_daemon_takes_over_the_socket_files_that_the_last_one_left(short_dir: Path) -> None:
    (short_dir / "f.sock").touch()
    for _ in range(2):
        async with open_stage(short_dir) as stage:
            await stage.ready_worker()
            assert (short_dir / "f.sock").is_socket()
