"""`AsyncClient` against the real socket server: streams, errors, losses, and readers that do not read."""

from __future__ import annotations

import array
import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_gateway import ScriptedGateway, serving, unix, wait_until
from raw_peer import RawPeer

from prebled import AsyncClient
from prebled.client import Answer, AsyncStream
from prebled.errors import (
    ConnectionLost,
    InternalError,
    InvalidValue,
    NotFound,
    PayloadTooLarge,
    PrebledError,
    ProtocolError,
    Saturated,
    SettingsError,
    SlowReader,
    WorkerFailed,
)
from prebled.messages import ChatMessage, Error, Started, Text, Usage
from prebled.wire import HEADER, PREFACE, pack


async def _tokens_until(stream: AsyncStream, kind: type[PrebledError], named: str) -> list[int]:
    """The tokens of a stream that is to fail, with this error."""
    tokens: list[int] = []

    async def read() -> None:
        async for chunk in stream:
            tokens.extend(chunk.tokens)

    with pytest.raises(kind, match=named):
        await read()
    return tokens


@pytest.mark.parametrize("kind", ["unix:", "unix://", "tcp:", "tcp://"])
async def test_a_stream_over_every_kind_of_address(short_dir: Path, kind: str) -> None:
    wanted = unix(short_dir) if kind.startswith("unix") else "tcp:127.0.0.1:0"
    async with serving(wanted) as (server, _):
        address = kind + server.addresses[0].partition(":")[2]
        async with AsyncClient(address) as client, await client.generate("count:3") as stream:
            assert stream.request_id == "req-0"
            assert stream.reason is None
            chunks = [(chunk.text, chunk.tokens) async for chunk in stream]
            assert chunks == [("0 ", (0,)), ("1 ", (1,)), ("2 ", (2,))]
            assert (stream.reason, stream.usage) == ("length", Usage(7, 3, 3))


async def test_collect_and_text(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, _), AsyncClient(server.addresses[0]) as client:
        stream = await client.generate("count:3")
        assert await stream.collect() == Answer("req-0", "0 1 2 ", (0, 1, 2), "length", Usage(7, 3, 3))
        assert await (await client.generate("count:2")).text() == "0 1 "


async def test_options_and_messages_arrive(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), AsyncClient(server.addresses[0]) as client:
        turns = [{"role": "system", "content": "be brief"}, ChatMessage("user", "hi")]
        options: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "top_k": 5, "stop": "x", "seed": 1, "model": "m"}
        await (await client.chat(turns, **options)).text()
        request = gateway.streams[0].request
        assert request.messages == (ChatMessage("system", "be brief"), ChatMessage("user", "hi"))
        assert (request.max_tokens, request.temperature, request.top_k) == (4, 0.0, 5)
        assert (request.stop, request.seed, request.model) == (("x",), 1, "m")
        assert (request.prompt, request.prompt_tokens) == (None, None)


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 70000],
        array.array("l", [1, 2, 70000]),
        np.array([1, 2, 70000], dtype=np.int64),
        b"\1\0\0\0\2\0\0\0\x70\x11\1\0",
        iter([1, 2, 70000]),
    ],
)
async def test_prompts_as_token_ids(short_dir: Path, ids: Any) -> None:
    async with serving(unix(short_dir)) as (server, gateway), AsyncClient(server.addresses[0]) as client:
        await client.generate(ids)
        assert gateway.streams[0].request.prompt_tokens == b"\1\0\0\0\2\0\0\0\x70\x11\1\0"


@pytest.mark.parametrize(
    ("ids", "named"), [([1, -5], "-5"), ([2**32], "4294967296"), ([1, "x"], "'x'"), ([1.5], "1.5")]
)
async def test_bad_token_ids_are_named_and_never_sent(short_dir: Path, ids: list[Any], named: str) -> None:
    async with serving(unix(short_dir)) as (server, gateway), AsyncClient(server.addresses[0]) as client:
        with pytest.raises(InvalidValue, match=named):
            await client.generate(ids)
        assert not gateway.streams


async def test_what_cannot_be_said_is_refused_before_it_is_sent(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), AsyncClient(server.addresses[0]) as client:
        with pytest.raises(TypeError, match="temprature"):
            await client.generate("x", temprature=1)  # type: ignore[call-arg]
        with pytest.raises(InvalidValue, match="surrogates"):
            await client.generate("\ud800")
        with pytest.raises(InvalidValue, match="serialize"):
            await client.generate("x", seed=2**80)
        with pytest.raises(InvalidValue, match="'name'"):
            await client.chat([{"role": "user", "content": "x", "name": "n"}])
        with pytest.raises(InvalidValue, match=r"Generate\.max_tokens = 'many'"):  # the daemon says so
            await client.generate("x", max_tokens="many")  # type: ignore[arg-type]
        assert not gateway.streams
        assert await (await client.generate("count:1")).text() == "0 "


async def test_many_in_flight_on_one_connection(short_dir: Path) -> None:
    async with serving(unix(short_dir), max_connections=1) as (server, _), AsyncClient(server.addresses[0]) as client:

        async def one(count: int) -> tuple[int, ...]:
            return (await (await client.generate(f"count:{count}")).collect()).tokens

        answers = await asyncio.gather(*(one(count) for count in range(200)))
        assert answers == [tuple(range(count)) for count in range(200)]


async def test_closing_a_stream_cancels_it_at_once(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), AsyncClient(server.addresses[0]) as client:
        async with await client.generate("hang") as stream, await client.generate("hang:2") as other:
            assert (await anext(stream)).text == "0 "
            await stream.aclose()
            assert await wait_until(lambda: gateway.streams[0].closed_at) < 0.1
            assert [chunk async for chunk in stream] == []
            assert gateway.streams[1].closed_at is None
            with pytest.raises(RuntimeError, match="closed before its end"):
                await stream.text()
        assert other.reason is None
        assert await wait_until(lambda: gateway.streams[1].closed_at) < 0.1  # by leaving the block


async def test_closing_ends_a_pending_read(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, _), AsyncClient(server.addresses[0]) as client:
        stream = await client.generate("hang:0")
        reading = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await asyncio.wait_for(reading, 1) is None


async def test_cancelling_the_wait_for_acceptance_cancels_the_request(short_dir: Path) -> None:
    class Slow(ScriptedGateway):
        cancelled = False

        async def generate(self, request: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True

    from prebled.daemon.socket_server import SocketServer
    from prebled.settings import LimitSettings

    gateway = Slow()
    async with SocketServer(gateway, [unix(short_dir)], LimitSettings()), AsyncClient(unix(short_dir)) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.generate("x"), 0.05)
        await wait_until(lambda: gateway.cancelled)


async def test_errors_are_typed(short_dir: Path) -> None:
    async with serving(unix(short_dir), max_body_bytes=500) as (server, _), AsyncClient(server.addresses[0]) as client:
        with pytest.raises(Saturated, match="1024 requests") as caught:
            await client.generate("fail")
        assert caught.value.retry_after_s == 2.5
        with pytest.raises(InternalError):
            await client.generate("bug")
        with pytest.raises(PayloadTooLarge, match="at most 500"):
            await client.generate("x" * 10_000)
        stream = await client.generate("break:2")
        assert await _tokens_until(stream, WorkerFailed, "w0 is gone") == [0, 1]
        assert await (await client.generate("count:1")).text() == "0 "


async def test_status(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, _), AsyncClient(server.addresses[0]) as client:
        status = await client.status()
        assert (status.ready, status.workers[0].id) == (True, "w0")


async def test_explain(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, _), AsyncClient(server.addresses[0]) as client:
        stream = await client.generate("count:1")
        explanation = await client.explain(stream.request_id)
        assert explanation.placement is not None
        assert (explanation.placement.worker_id, explanation.cached_tokens) == ("w0", 576)
        assert explanation.placement.candidates[0].cached_tokens == 640
        with pytest.raises(NotFound, match="req-77") as caught:
            await client.explain("req-77")
        assert caught.value.param == "request_id"
        assert await stream.text() == "0 "


async def test_a_slow_stream_is_ended_alone(short_dir: Path) -> None:
    async with (
        serving(unix(short_dir)) as (server, gateway),
        AsyncClient(server.addresses[0], unread_tokens=50) as client,
    ):
        slow = await client.generate("flood")
        quick = await client.generate("hang:20")
        await wait_until(lambda: gateway.streams[0].closed_at)  # cancelled by the client, without a reader
        assert await (await client.generate("count:40")).text()
        # What had arrived can still be read.
        assert len(await _tokens_until(slow, SlowReader, "at most 50")) == 51
        assert (await anext(quick)).tokens == (0,)
        assert gateway.streams[1].closed_at is None


async def test_no_daemon_there(short_dir: Path) -> None:
    async with AsyncClient(unix(short_dir)) as client:
        with pytest.raises(ConnectionLost, match=r"prebled\.sock: No such file.*is the daemon running"):
            await client.status()
    with pytest.raises(SettingsError, match="ftp:x"):
        AsyncClient("ftp:x")


async def test_a_daemon_that_dies_fails_every_stream_and_the_next_call_reconnects(short_dir: Path) -> None:
    async with AsyncClient(unix(short_dir)) as client:
        async with serving(unix(short_dir)) as (server, _):
            streams = [await client.generate("hang") for _ in range(3)]
            for connection in server._connections.values():
                connection._answers._transport.abort()
            for stream in streams:
                assert (await anext(stream)).text == "0 "  # arrived before the loss
                with pytest.raises(ConnectionLost, match="closed by the daemon"):
                    await anext(stream)
            assert await (await client.generate("count:2")).text() == "0 1 "
        with pytest.raises(ConnectionLost):
            await client.generate("count:2")
        async with serving(unix(short_dir)):
            assert await (await client.generate("count:2")).text() == "0 1 "


async def test_leaving_the_client_ends_its_streams(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway):
        async with AsyncClient(server.addresses[0]) as client:
            stream = await client.generate("hang:0")
        assert await wait_until(lambda: gateway.streams[0].closed_at) < 0.1
        with pytest.raises(ConnectionLost, match=r"client of unix:.* was closed"):
            await anext(stream)
        with pytest.raises(ConnectionLost, match="was closed"):
            await client.generate("count:1")


async def _answer_with(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    await reader.readexactly(len(PREFACE) + HEADER.size)
    writer.write(data)
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1"),
        (HEADER.pack(3) + b"\xc1\xc1\xc1", "not of this protocol"),
        (pack(Error(None, "protocol_error", "protocol version 1: this daemon speaks version 2")), "speaks version 2"),
    ],
)
async def test_a_peer_of_another_kind_is_told_apart(short_dir: Path, data: bytes, named: str) -> None:
    path = f"{short_dir}/other.sock"
    server = await asyncio.start_unix_server(lambda r, w: _answer_with(r, w, data), path)
    async with server, AsyncClient(f"unix:{path}") as client:
        with pytest.raises(ProtocolError, match=named):
            await client.generate("x")


async def test_a_daemon_that_does_not_answer(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{short_dir}/deaf.sock")
        deaf.listen()
        async with AsyncClient(f"unix:{short_dir}/deaf.sock", timeout_s=0.1) as client:
            with pytest.raises(ConnectionLost, match=r"no answer .* within 0\.1 s"):
                await client.status()


async def test_frames_in_any_pieces_and_late_ones_are_taken(short_dir: Path) -> None:
    frames = b"".join(map(pack, [Started(1, "r"), Text(9, "late", (9,)), Text(1, "a", (1,)), Text(1, "b", (2,))]))

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PREFACE) + HEADER.size)
        for i in range(len(frames)):
            writer.write(frames[i : i + 1])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()
        writer.close()

    path = f"{short_dir}/dribble.sock"
    async with await asyncio.start_unix_server(dribble, path), AsyncClient(f"unix:{path}") as client:
        stream = await client.generate("x")
        assert [(await anext(stream)).text for _ in range(2)] == ["a", "b"]


async def test_large_prompts_pass_side_by_side(short_dir: Path) -> None:
    async with serving("tcp:127.0.0.1:0") as (server, gateway), AsyncClient(server.addresses[0]) as client:
        started_at = time.monotonic()
        await asyncio.gather(*(client.generate(list(range(250_000))) for _ in range(8)))
        assert {len(stream.request.prompt_tokens) for stream in gateway.streams} == {1_000_000}
        assert time.monotonic() - started_at < 10


async def test_a_foreign_client_may_use_the_protocol(short_dir: Path) -> None:
    """The documented bytes, written out: what a client in another language would send."""
    async with serving(unix(short_dir)) as (server, _), RawPeer(server.addresses[0], b"PREBLED\x02") as peer:
        peer.writer.write(b"\0\0\0\x13" + b"\x93\xa8Generate\x01\xa7count:1")
        assert (await peer.read_kind(Text, 1)).tokens == (0,)
