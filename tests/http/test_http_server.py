"""Listening: several addresses at once, clear errors, socket options, and an orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from scripted_gateway import USAGE, serving, tokens_of, until

from prebled.daemon.http_protocol import CROWD, HttpProtocol
from prebled.daemon.http_server import HttpServer
from prebled.daemon.streams import RequestStream
from prebled.errors import SettingsError
from prebled.settings import LimitSettings

TEXT = {"prompt": "hi"}


async def nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError("no request was expected")


async def get_live(address: str) -> int:
    if address.startswith("unix:"):
        transport = httpx.AsyncHTTPTransport(uds=address.removeprefix("unix:"))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get("http://x/live")).status_code
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://{address}/live")).status_code


async def test_several_addresses_at_once(tmp_path: Path) -> None:
    addresses = ["127.0.0.1:0", "tcp:127.0.0.1:0", f"unix:{tmp_path}/h.sock"]
    if has_ipv6():
        addresses.append("[::1]:0")
    async with serving(*addresses) as (server, _):
        assert len(server.addresses) == len(addresses)
        assert len(set(server.addresses)) == len(addresses)
        for address in server.addresses:
            assert not address.endswith(":0")
            assert await get_live(address) == 200


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_name_is_served_on_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("localhost:0") as (server, _):
        assert server.addresses[0].rpartition(":")[0] in ("127.0.0.1", "[::1]")
        ports = {address.rpartition(":")[2] for address in server.addresses}
        assert len(ports) == 1
        for address in server.addresses:
            assert await get_live(address) == 200


async def test_a_port_in_use_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        unix = tmp_path / "h.sock"
        server = HttpServer(nothing, [f"unix:{unix}", f"127.0.0.1:{port}"], LimitSettings())
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port}"):
            await server.start()
        assert not unix.exists()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1", "unix:", "::1:8000", "host.invalid:8000"])
async def test_bad_addresses_are_named(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        await HttpServer(nothing, [address], LimitSettings()).start()
    assert address in caught.value.message


async def test_a_stale_socket_file_is_replaced_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(f"unix:{path}") as (server, _):
        assert await get_live(server.addresses[0]) == 200
        with pytest.raises(SettingsError, match=r"h\.sock"):
            await HttpServer(nothing, [f"unix:{path}"], LimitSettings()).start()
        assert await get_live(server.addresses[0]) == 200
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(SettingsError, match=r"h\.sock"):
        await HttpServer(nothing, [f"unix:{path}"], LimitSettings()).start()
    assert path.read_text() == "precious"


async def test_signal_handlers_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_tokens_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = HttpProtocol.connection_made

    def connection_made(self: HttpProtocol, transport: asyncio.Transport) -> None:
        original(self, transport)
        connection = transport.get_extra_info("socket")
        seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(HttpProtocol, "connection_made", connection_made)
    async with serving() as (server, _):
        await get_live(server.addresses[0])
    assert seen == [1]


async def test_a_drain_finishes_what_runs_and_takes_nothing_new() -> None:
    go = asyncio.Event()

    async def wait(stream: RequestStream) -> None:
        stream.push(tokens_of("begun "))
        await go.wait()
        stream.push(tokens_of("done"))
        stream.finish("stop", USAGE)

    async with serving() as (server, gateway), httpx.AsyncClient() as client:
        gateway.script = wait
        idle = await asyncio.open_connection(*server.addresses[0].split(":"))
        request = client.stream("POST", f"http://{server.addresses[0]}/v1/completions", json=TEXT | {"stream": True})
        async with request as answer:
            server.stop_accepting()
            assert await idle[0].read() == b""  # an idle connection is closed
            idle[1].close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*server.addresses[0].split(":"))
            closing = asyncio.create_task(server.wait_closed(10))
            await asyncio.sleep(0)
            assert not closing.done()
            go.set()
            text = await answer.aread()
            assert b"done" in text
            assert b"[DONE]" in text
        assert await closing is True
        assert server.open_connections == 0


async def test_what_does_not_finish_in_time_is_cut_off() -> None:
    async def for_ever(stream: RequestStream) -> None:
        stream.push(tokens_of("begun"))
        await asyncio.Event().wait()

    async with serving() as (server, gateway), httpx.AsyncClient() as client:
        gateway.script = for_ever
        request = client.stream("POST", f"http://{server.addresses[0]}/v1/completions", json=TEXT | {"stream": True})
        async with request as answer:
            began = time.perf_counter()
            assert await server.wait_closed(0.05) is False
            assert time.perf_counter() - began < 2
            with pytest.raises(httpx.RemoteProtocolError):
                await answer.aread()
        await asyncio.wait_for(gateway.abort_seen.wait(), 1)
        assert server.open_connections == 0


async def test_connections_beyond_the_limit_are_told_so() -> None:
    async with serving(max_connections=2) as (server, _):
        host, port = server.addresses[0].split(":")
        idle = [await asyncio.open_connection(host, port) for _ in range(2)]
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            refused = await client.post("/v1/completions", json=TEXT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "saturated")
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
            assert (await client.get("/live")).status_code == 200
            for _, writer in idle:
                writer.close()
                await writer.wait_closed()
            await until(lambda: not server.open_connections)
            assert (await client.post("/v1/completions", json=TEXT)).status_code == 200


async def test_far_beyond_the_limit_connections_are_cut_off() -> None:
    async with serving(max_connections=1) as (server, _):
        host, port = server.addresses[0].split(":")
        held = [await asyncio.open_connection(host, port) for _ in range(1 + CROWD + 20)]
        reader, _ = held[-1]
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert server.open_connections <= 1 + CROWD
        for _, writer in held:
            writer.close()
