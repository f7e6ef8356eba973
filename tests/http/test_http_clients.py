"""Clients that misbehave: they vanish, do not read, send half or far too much. They harm only themselves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from scripted_gateway import USAGE, serving, tokens_of, until

from prebled.daemon import http_exchange, http_generation, http_protocol
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.streams import RequestStream
from prebled.errors import WorkerFailed

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request(path: str = "/v1/completions", **fields: object) -> bytes:
    body = msgspec.json.encode({"prompt": "hi"} | fields)
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body


@asynccontextmanager
async def connected(address: str, receive_buffer: int = 0) -> AsyncIterator[Connection]:
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    host, port = address.split(":")
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=2**16)
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)


async def for_ever(stream: RequestStream) -> None:
    """Nothing comes."""
    await asyncio.Event().wait()


async def one_token(stream: RequestStream) -> None:
    stream.push(tokens_of("a"))
    await asyncio.Event().wait()


async def flood(stream: RequestStream) -> None:
    """More than any buffer on the way holds."""
    while not stream.has_ended:
        stream.push(tokens_of("x" * 50))
        await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_client_that_leaves_before_the_first_token(stream: bool, way: str) -> None:
    async with serving() as (server, gateway):
        gateway.script = for_ever
        async with connected(server.addresses[0]) as (_, writer):
            writer.write(request(stream=stream))
            await until(lambda: gateway.streams)
            await leave(writer, way)
            left = time.perf_counter()
            await asyncio.wait_for(gateway.abort_seen.wait(), 5)
            assert time.perf_counter() - left < 0.1
        assert gateway.aborted == [gateway.streams[0].request_id]


async def leave(writer: asyncio.StreamWriter, way: str) -> None:
    if way == "reset":
        linger = b"\1\0\0\0\0\0\0\0"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()
    await asyncio.sleep(0)


async def test_a_client_that_leaves_midway() -> None:
    async with serving() as (server, gateway):
        gateway.script = one_token
        async with connected(server.addresses[0]) as (reader, writer):
            writer.write(request(stream=True))
            await asyncio.wait_for(reader.readuntil(b"data: "), 5)
            writer.close()
            left = time.perf_counter()
            await asyncio.wait_for(gateway.abort_seen.wait(), 5)
            assert time.perf_counter() - left < 0.1


async def test_a_client_that_leaves_while_its_request_is_taken_up() -> None:
    entered = asyncio.Event()

    async def tokenise(given: GenerateInput) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with serving() as (server, gateway):
        gateway.before = tokenise
        async with connected(server.addresses[0]) as (_, writer):
            writer.write(request())
            await asyncio.wait_for(entered.wait(), 5)
            writer.close()
            await asyncio.wait_for(gateway.abort_seen.wait(), 5)
        assert gateway.cancelled_before == 1
        assert gateway.streams == []


async def test_a_client_that_never_reads_is_cut_off_alone() -> None:
    async with serving(stream_tokens=500) as (server, gateway):
        gateway.script = flood
        async with connected(server.addresses[0], receive_buffer=4096) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request(stream=True, max_tokens=10**6))
            await asyncio.wait_for(gateway.abort_seen.wait(), 20)
            # Its connection goes too, although the client still holds its end: not left to wait for its buffer.
            await until(lambda: not server.open_connections, 2)
            sent = len(gateway.streams[0].sent_tokens)
            assert sent < 200_000  # the kernel alone would take three times as many
        gateway.script = one_token
        async with connected(server.addresses[0]) as (reader, writer):
            writer.write(request(stream=True))
            assert (await read_head(reader)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_does_not_read_its_error_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_generation, "GRACE_S", 0.05)

    async def fail_when_stuck(stream: RequestStream) -> None:
        for _ in range(400):
            stream.push(tokens_of("x" * 10_000))
            await asyncio.sleep(0)
        raise WorkerFailed("gone")

    async with serving(stream_tokens=10**8) as (server, gateway):
        gateway.script = fail_when_stuck
        async with connected(server.addresses[0], receive_buffer=4096) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request(stream=True))
            await until(lambda: gateway.streams and gateway.streams[0].has_ended)
            await until(lambda: not server.open_connections)
        assert gateway.aborted == []  # the request had ended by itself


@pytest.mark.parametrize("header", [b"", b"connection: close\r\n"])
async def test_a_whole_answer_that_is_not_fetched_is_given_up(header: bytes) -> None:
    asked = request().replace(b"host: x\r\n", b"host: x\r\n" + header)

    async def huge(stream: RequestStream) -> None:
        for _ in range(20):
            stream.push(tokens_of("x" * 100_000))
            await asyncio.sleep(0)
        stream.finish("length", USAGE)

    async with serving(stream_tokens=10**8) as (server, gateway):
        gateway.script = huge
        server._config.timeout_keep_alive = 0.1  # type: ignore[assignment]
        async with connected(server.addresses[0], receive_buffer=4096) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(asked)
            await until(lambda: gateway.streams and not server.open_connections)
        async with connected(server.addresses[0]) as (reader, writer):
            writer.write(asked)
            head = await read_head(reader)
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert size > 2_000_000
            got = 0
            while got < size:  # slowly, but it reads: longer than the time after which the other was cut off
                got += len(await asyncio.wait_for(reader.read(2**16), 5))
                await asyncio.sleep(0.01)
            assert got == size


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_bound_is_refused_while_it_is_sent(chunked: bool) -> None:
    async with serving(max_body_bytes=100_000) as (server, gateway), connected(server.addresses[0]) as (reader, writer):
        length = b"transfer-encoding: chunked" if chunked else b"content-length: 100000000"
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n" % length)
        piece = b"x" * 10_000
        sender = asyncio.create_task(send_for_ever(writer, b"2710\r\n" + piece + b"\r\n" if chunked else piece))
        head = await read_head(reader)
        body = await asyncio.wait_for(reader.read(1000), 5)
        sender.cancel()
        assert head.startswith(b"HTTP/1.1 413")
        assert b"x-request-id" in head
        assert b"payload_too_large" in body
        assert b"100000" in body
        assert gateway.inputs == []


async def send_for_ever(writer: asyncio.StreamWriter, piece: bytes) -> None:
    while True:
        writer.write(piece)
        await writer.drain()


async def test_a_body_at_the_bound_is_taken() -> None:
    fields = request(prompt="x" * 50_000)
    size = len(fields.partition(b"\r\n\r\n")[2])
    for bound, status in ((size, b"200"), (size - 1, b"413")):
        async with serving(max_body_bytes=bound) as (server, _), connected(server.addresses[0]) as (reader, writer):
            writer.write(fields)
            assert (await read_head(reader)).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", request()[:-5]])
async def test_half_a_request_and_gone(sent: bytes) -> None:
    async with serving() as (server, gateway):
        async with connected(server.addresses[0]) as (_, writer):
            writer.write(sent)
            await writer.drain()
            await until(lambda: server.open_connections)
        await until(lambda: not server.open_connections and not server._state.tasks, 2)
        assert gateway.inputs == []


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"GET /live HTTP/1.1\r\nhost: x\r\nx-long: "])
async def test_half_a_head_is_waited_for_only_so_long(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.05)
    async with serving() as (server, _), connected(server.addresses[0]) as (reader, writer):
        writer.write(sent)
        await until(lambda: server.open_connections)
        await until(lambda: not server.open_connections, 5)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_half_a_body_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "BODY_PAUSE_S", 0.05)
    async with serving() as (server, _), connected(server.addresses[0]) as (reader, writer):
        writer.write(request()[:-5])
        assert (await read_head(reader)).startswith(b"HTTP/1.1 400")
        assert b"the body stopped after" in await reader.read(1000)


async def test_an_endless_head_is_refused() -> None:
    async with serving() as (server, _), connected(server.addresses[0]) as (_, writer):
        writer.write(b"GET /live HTTP/1.1\r\nx-long: ")
        sender = asyncio.create_task(send_for_ever(writer, b"y" * 10_000))
        done, _ = await asyncio.wait([sender], timeout=10)
        assert done  # the connection was closed
        assert isinstance(sender.exception(), OSError)


async def test_what_is_no_http_gets_an_answer_in_shape() -> None:
    async with serving() as (server, _), connected(server.addresses[0]) as (reader, writer):
        writer.write(b"PREBLED\x01\x00\x00\x00\x05hello\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"x-request-id: req-" in head
        assert msgspec.json.decode(body)["error"]["type"] == "invalid_request_error"


async def test_requests_in_a_row_on_one_connection() -> None:
    async with serving() as (server, gateway), connected(server.addresses[0]) as (reader, writer):
        writer.write(request() + request(stream=True) + request())  # all at once
        text = b""
        while text.count(b"HTTP/1.1 200") < 3 or text.count(b"finish_reason") < 3:
            text += await asyncio.wait_for(reader.read(65536), 5)
        assert len(gateway.inputs) == 3
