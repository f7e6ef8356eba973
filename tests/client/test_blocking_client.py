"""`Client` against the real socket server, which runs on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native_gateway import ScriptedGateway, serving, unix

from prebled import Client
from prebled.client import Answer
from prebled.daemon.socket_server import SocketServer
from prebled.errors import ConnectionLost, InvalidValue, NotFound, ProtocolError, Saturated, SlowReader, WorkerFailed
from prebled.messages import Usage
from prebled.wire import HEADER, PREFACE


class ServerThread:
    """A server that blocking code can talk to."""

    def __init__(self, *addresses: str) -> None:
        self._wanted = addresses
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with serving(*self._wanted) as (server, gateway):
            self.server: SocketServer = server
            self.gateway: ScriptedGateway = gateway
            self._ready.set()
            await self._stop.wait()

    @property
    def address(self) -> str:
        return self.server.addresses[0]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@pytest.fixture(params=["unix", "tcp"])
def served(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[ServerThread]:
    thread = ServerThread(unix(short_dir) if request.param == "unix" else "tcp:127.0.0.1:0")
    yield thread
    thread.stop()


def _wait_closed(gateway: ScriptedGateway, index: int) -> float:
    started_at = time.monotonic()
    while gateway.streams[index].closed_at is None:
        assert time.monotonic() - started_at < 5
        time.sleep(0.001)
    return time.monotonic() - started_at


def test_a_stream(served: ServerThread) -> None:
    with Client(served.address) as client:
        with client.generate("count:3") as stream:
            assert stream.request_id == "req-0"
            assert [(chunk.text, chunk.tokens) for chunk in stream] == [("0 ", (0,)), ("1 ", (1,)), ("2 ", (2,))]
            assert (stream.reason, stream.usage) == ("length", Usage(7, 3, 3))
        chat = client.chat([{"role": "user", "content": "hi"}], max_tokens=1)
        assert chat.collect() == Answer("req-1", "0 ", (0,), "length", Usage(7, 1, 3))
        assert client.generate([1, 2], stop=["a", "b"]).text() == "0 "
        assert served.gateway.streams[2].request.prompt_tokens == b"\1\0\0\0\2\0\0\0"
        assert served.gateway.streams[2].request.stop == ("a", "b")
        assert client.status().workers[0].id == "w0"
        assert client.explain("req-0").cached_tokens == 576
        with pytest.raises(NotFound, match="req-77"):
            client.explain("req-77")


def test_errors_are_typed_and_harm_nothing_else(served: ServerThread) -> None:
    with Client(served.address) as client:
        with pytest.raises(Saturated) as caught:
            client.generate("fail")
        assert caught.value.retry_after_s == 2.5
        with pytest.raises(InvalidValue, match="-1"):
            client.generate([-1])
        broken = client.generate("break:2")
        assert [next(broken).tokens, next(broken).tokens] == [(0,), (1,)]
        with pytest.raises(WorkerFailed):
            next(broken)
        assert client.generate("count:1").text() == "0 "


def test_threads_share_one_connection(served: ServerThread) -> None:
    with Client(served.address) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda count: client.generate(f"count:{count}").collect().tokens, range(100)))
        assert answers == [tuple(range(count)) for count in range(100)]
        assert len(served.server._connections) == 1


def test_closing_a_stream_cancels_it_and_ends_a_pending_read(served: ServerThread) -> None:
    with Client(served.address) as client:
        stream = client.generate("hang")
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(list, stream)
            stream.close()
            assert _wait_closed(served.gateway, 0) < 0.1
            assert reading.result(5) == []
        with client.generate("hang"):
            pass
        assert _wait_closed(served.gateway, 1) < 0.1


def test_a_slow_stream_is_ended_alone(served: ServerThread) -> None:
    with Client(served.address, unread_tokens=50) as client:
        slow = client.generate("flood")
        quick = client.generate("hang:20")
        assert _wait_closed(served.gateway, 0) < 5
        assert client.generate("count:40").text()
        with pytest.raises(SlowReader, match="at most 50"):
            list(slow)
        assert next(quick).tokens == (0,)
        assert served.gateway.streams[1].closed_at is None


def test_a_daemon_that_goes_fails_every_thread_and_the_next_call_reconnects(short_dir: Path) -> None:
    served = ServerThread(unix(short_dir))
    with Client(served.address) as client, ThreadPoolExecutor(4) as pool:
        streams = [client.generate("hang") for _ in range(4)]
        readings = [pool.submit(list, stream) for stream in streams]
        served._loop.call_soon_threadsafe(
            lambda: [connection._answers._transport.abort() for connection in served.server._connections.values()]
        )
        for reading in readings:
            with pytest.raises(ConnectionLost):
                reading.result(5)
        assert client.generate("count:2").text() == "0 1 "
        served.stop()
        with pytest.raises(ConnectionLost):
            client.status()  # may be the one that finds out
        with pytest.raises(ConnectionLost, match="is the daemon running"):
            client.status()
        served = ServerThread(unix(short_dir))
        assert client.generate("count:2").text() == "0 1 "
    served.stop()


def test_closing_the_client_ends_its_streams(served: ServerThread) -> None:
    client = Client(served.address)
    stream = client.generate("hang")
    next(stream)
    client.close()
    client.close()
    assert _wait_closed(served.gateway, 0) < 0.1
    with pytest.raises(ConnectionLost, match="was closed"):
        next(stream)
    with pytest.raises(ConnectionLost, match="was closed"):
        client.status()


async def test_a_stranger_on_the_other_side_is_told_apart(short_dir: Path) -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PREFACE) + HEADER.size)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    def ask() -> None:
        with Client(f"unix:{path}") as client:
            client.status()

    path = f"{short_dir}/http.sock"
    async with await asyncio.start_unix_server(speak_http, path):
        with pytest.raises(ProtocolError, match=r"HTTP/1\.1"):
            await asyncio.to_thread(ask)


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = "import sys, prebled; prebled.Client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"asyncio", "numpy", "structlog", "zmq"}.isdisjoint(done.stdout.split())
