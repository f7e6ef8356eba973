"""The native socket as raw bytes see it: what goes wrong on the wire harms only what it must."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from native_gateway import ScriptedGateway, serving, unix, wait_until
from raw_peer import RawPeer

from prebled.daemon.gateway import StreamUpdate
from prebled.daemon.socket_server import SocketServer
from prebled.errors import SettingsError
from prebled.messages import (
    Cancel,
    DecisionReply,
    Error,
    Finished,
    Generate,
    GetDecision,
    GetStatus,
    Started,
    StatusReply,
    Text,
    Usage,
)
from prebled.settings import LimitSettings
from prebled.wire import HEADER, PREFACE, pack


async def _assert_alive(peer: RawPeer, call: int) -> None:
    peer.send(Generate(call, prompt="count:3"))
    assert (await peer.read_kind(Finished, call)).usage.completion_tokens == 3


@pytest.mark.parametrize("address", ["unix", "tcp:127.0.0.1:0"])
async def test_an_answer_frame_by_frame(short_dir: Path, address: str) -> None:
    async with serving(unix(short_dir) if address == "unix" else address) as (server, gateway):
        async with RawPeer(server.addresses[0]) as peer:
            peer.send(Generate(5, prompt="count:2", max_tokens=2, stop=("x",), cache_salt="s"))
            got = [await peer.read() for _ in range(4)]
            assert got[:3] == [Started(5, "req-0"), Text(5, "0 ", (0,)), Text(5, "1 ", (1,))]
            assert isinstance(got[3], Finished)
            request = gateway.streams[0].request
            assert (request.max_tokens, request.stop, request.cache_salt) == (2, ("x",), "s")
            peer.send(GetStatus(6))
            status = await peer.read_kind(StatusReply, 6)
            assert status.status.workers[0].kv_total_tokens == 8192
            peer.send(GetDecision(7, "req-0"))
            assert (await peer.read_kind(DecisionReply, 7)).explanation.request_id == "req-0"
            peer.send(GetDecision(8, "req-1"))
            error = await peer.read_kind(Error, 8)
            assert (error.code, "'req-1'" in error.message) == ("not_found", True)
        assert gateway.streams[0].closed_at is not None


async def test_cancel_closes_the_stream_and_sends_no_end(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.send(Generate(1, prompt="hang"))
        await peer.read_kind(Text, 1)
        peer.send(Cancel(1))
        assert await wait_until(lambda: gateway.streams[0].closed_at) < 0.1
        peer.send(Cancel(1), Cancel(77), GetStatus(2))
        assert isinstance(await peer.read(), StatusReply)  # the very next frame


async def test_a_cancel_right_behind_its_request_leaves_nothing(short_dir: Path) -> None:
    async with serving(unix(short_dir), max_calls=1) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.send(Generate(1, prompt="hang"), Cancel(1), GetStatus(2))
        await peer.read_kind(StatusReply, 2)
        assert all(stream.closed_at for stream in gateway.streams)
        await _assert_alive(peer, 1)  # its number and its place are free again


async def test_a_vanished_client_loses_all_its_streams_at_once(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as bystander:
        bystander.send(Generate(1, prompt="hang"))
        await bystander.read_kind(Text, 1)
        async with RawPeer(server.addresses[0]) as peer:
            peer.send(*(Generate(call, prompt="hang") for call in range(20)))
            await wait_until(lambda: len(gateway.streams) == 21)
        took_s = await wait_until(lambda: sum(bool(s.closed_at) for s in gateway.streams) == 20)
        assert took_s < 0.1
        await _assert_alive(bystander, 2)


@pytest.mark.parametrize("rest", [PREFACE[:3], PREFACE + b"\0\0", PREFACE + HEADER.pack(500) + b"\x93\xa8Gen"])
async def test_half_a_frame_then_close_is_no_event(short_dir: Path, rest: bytes) -> None:
    async with serving(unix(short_dir)) as (server, _), RawPeer(server.addresses[0]) as bystander:
        async with RawPeer(server.addresses[0], preface=rest) as peer:
            peer.writer.write_eof()
            assert await peer.read_end() == b""
        await _assert_alive(bystander, 1)


@pytest.mark.parametrize(
    ("value", "code", "param", "named"),
    [
        (["Generate", 9, "a", None, None, "", "many"], "invalid_value", "max_tokens", "'many'"),
        (["Generate", 9, None, None, [["ChatMessage", "user", 3]]], "invalid_value", "messages", "messages[0][2] = 3"),
        (["Generate", 9], "invalid_value", "prompt", "none"),
        (["Generate", 9, "a", b"\0\0\0\0"], "invalid_value", "prompt", "prompt and prompt_tokens"),
        (["Generate", 9, None, b"\0\0\0"], "invalid_value", "prompt_tokens", "3 bytes"),
        (["Explode", 9], "protocol_error", None, "'Explode'"),
        (["Generate", 9, *["x"] * 40], "invalid_value", "prompt_tokens", "'x'"),
    ],
)
async def test_a_bad_frame_with_a_call_ends_that_call_alone(
    short_dir: Path, value: Any, code: str, param: str | None, named: str
) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.send(Generate(1, prompt="hang"))
        peer.send_value(value)
        error = await peer.read_kind(Error, 9)
        assert (error.code, error.param) == (code, param)
        assert named in error.message
        await _assert_alive(peer, 9)
        assert gateway.streams[0].closed_at is None


async def test_spoilt_msgpack_behind_a_readable_call_ends_that_call_alone(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.send(Generate(1, prompt="hang"))
        for payload in [b"\x93\xa8Generate\xcd\x01\x00\xa2\xff\xfe", b"\x93\xa8Generate\xcd\x01\x00\xc1"]:
            peer.send_raw(payload)
            assert (await peer.read_kind(Error, 256)).code == "protocol_error"
        assert gateway.streams[0].closed_at is None


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"hello, world", msgspec.msgpack.encode({"type": "Generate"}), b"\x91" * 3000, b"\x91\xa6Cancel"],
)
async def test_garbage_ends_its_connection_alone(short_dir: Path, payload: bytes) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as bystander:
        async with RawPeer(server.addresses[0]) as peer:
            peer.send(Generate(1, prompt="hang"))
            await peer.read_kind(Text, 1)
            peer.send_raw(payload)
            assert (await peer.read_kind(Error, None)).code == "protocol_error"
            assert await peer.read_end() == b""
            assert gateway.streams[0].closed_at is not None
        await _assert_alive(bystander, 1)


async def test_an_oversize_frame_is_read_past_and_refused_with_both_sizes(short_dir: Path) -> None:
    async with serving(unix(short_dir), max_body_bytes=1000) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.send(Generate(1, prompt="hang"), Generate(300, prompt="x" * 2_000_000))
        error = await peer.read_kind(Error, 300)
        assert error.code == "payload_too_large"
        assert "2000" in error.message
        assert "at most 1000" in error.message
        await _assert_alive(peer, 2)
        assert gateway.streams[0].closed_at is None


async def test_an_oversize_frame_without_a_call_ends_the_connection_and_the_error_arrives(short_dir: Path) -> None:
    async with serving("tcp:127.0.0.1:0", max_body_bytes=1000) as (server, _), RawPeer(server.addresses[0]) as peer:
        peer.writer.write(HEADER.pack(3_000_000) + b"x" * 3_000_000)  # still being sent while the answer comes
        error = await peer.read_kind(Error, None)
        assert "3000000" in error.message
        assert "1000" in error.message
        assert await peer.read_end() == b""


async def test_a_call_number_in_flight_is_refused_and_the_old_one_goes_on(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.send(Generate(4, prompt="hang"), Generate(4, prompt="count:9"))
        error = await peer.read_kind(Error, 4)
        assert (error.code, error.param) == ("protocol_error", "call")
        assert "call 4" in error.message
        assert [(s.request.prompt, s.closed_at) for s in gateway.streams] == [("hang", None)]


async def test_calls_per_connection_are_bounded(short_dir: Path) -> None:
    async with serving(unix(short_dir), max_calls=2) as (server, _), RawPeer(server.addresses[0]) as peer:
        peer.send(*(Generate(call, prompt="hang") for call in (1, 2, 3)))
        error = await peer.read_kind(Error, 3)
        assert (error.code, error.retry_after_s) == ("saturated", 1.0)
        peer.send(Cancel(1))
        peer.send(GetStatus(8))
        await peer.read_kind(StatusReply, 8)
        await _assert_alive(peer, 3)


async def test_connections_are_bounded(short_dir: Path) -> None:
    async with serving(unix(short_dir), max_connections=1) as (server, _), RawPeer(server.addresses[0]) as first:
        await _assert_alive(first, 1)
        async with RawPeer(server.addresses[0]) as second:
            error = await second.read_kind(Error, None)
            assert error.code == "saturated"
            assert error.message.startswith("1 connections")
            assert await second.read_end() == b""
        await _assert_alive(first, 2)


@pytest.mark.parametrize(
    ("preface", "named"),
    [
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", "400 Bad Request"),
        (b"PREBLED\x09", "protocol version 9: this daemon speaks version 2"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "not prebled's native protocol"),
    ],
)
async def test_a_wrong_preface_is_told_so(short_dir: Path, preface: bytes, named: str) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0], preface) as peer:
        assert named in (await peer.read_end()).decode(errors="replace")
        assert not gateway.streams


async def test_a_client_without_a_preface_is_not_kept(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prebled.daemon.socket_connection.PREFACE_S", 0.05)
    async with serving(unix(short_dir)) as (server, _), RawPeer(server.addresses[0], b"PRE") as peer:
        assert (await peer.read_kind(Error, None)).message.startswith("no preface")


async def _slow_reader_scenario(address: str) -> None:
    """A client that never reads loses its flood and then its connection; another client's streams do not notice."""
    async with serving(address) as (server, gateway), RawPeer(server.addresses[0]) as bystander:
        async with RawPeer(server.addresses[0]) as sleeper:
            sleeper.reader._transport.pause_reading()
            sleeper.send(Generate(1, prompt="flood"), Generate(2, prompt="hang"))
            await wait_until(lambda: len(gateway.streams) == 2)
            fetched = -1
            while fetched != gateway.streams[0].fetched:  # until the socket is full
                fetched = gateway.streams[0].fetched
                await asyncio.sleep(0.03)
                await _assert_alive(bystander, 1)
            await wait_until(lambda: gateway.streams[0].closed_at)
            await wait_until(lambda: gateway.streams[1].closed_at)  # the connection is dropped
        await _assert_alive(bystander, 2)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_reader_that_is_stuck_is_dropped_alone(
    short_dir: Path, runner: Callable[[Awaitable[None]], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prebled.daemon.socket_writer.STUCK_S", 0.2)
    runner(_slow_reader_scenario(unix(short_dir) if kind == "unix" else "tcp:127.0.0.1:0"))


async def test_a_slow_reader_that_recovers_keeps_its_connection(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway), RawPeer(server.addresses[0]) as peer:
        peer.reader._transport.pause_reading()
        peer.send(Generate(1, prompt="flood"))
        await wait_until(lambda: gateway.streams and gateway.streams[0].closed_at)
        peer.reader._transport.resume_reading()
        assert (await peer.read_kind(Error, 1)).code == "slow_reader"
        await _assert_alive(peer, 2)


async def test_a_client_that_asks_without_reading_is_dropped(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prebled.daemon.socket_writer.MOST_UNSENT_BYTES", 100_000)
    async with serving(unix(short_dir)) as (server, _), RawPeer(server.addresses[0]) as peer:
        peer.reader._transport.pause_reading()
        request = pack(GetStatus(1)) * 100

        async def ask() -> None:
            while True:
                peer.writer.write(request)
                await peer.writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), 20)


async def test_leaving_tells_clients_and_closes_their_streams(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, gateway):
        peer = await RawPeer(server.addresses[0]).__aenter__()
        peer.send(Generate(1, prompt="hang"))
        await peer.read_kind(Text, 1)
    assert gateway.streams[0].closed_at is not None
    assert (await peer.read_kind(Error, None)).code == "draining"
    assert await peer.read_end() == b""
    await peer.__aexit__()


async def test_leaving_lets_answers_be_delivered(short_dir: Path) -> None:
    async with serving(unix(short_dir), grace_s=5.0) as (server, gateway):
        peer = await RawPeer(server.addresses[0]).__aenter__()
        peer.send(Generate(1, prompt="hang"))
        await peer.read_kind(Text, 1)
        end = StreamUpdate("bye", (8,), "stop", Usage(1, 2, 0))
        asyncio.get_running_loop().call_later(0.05, gateway.streams[0].push, end)
    assert (await peer.read_kind(Finished, 1)).reason == "stop"
    await peer.__aexit__()


async def test_stop_accepting_lets_open_connections_go_on(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, _), RawPeer(server.addresses[0]) as peer:
        await _assert_alive(peer, 1)
        server.stop_accepting()
        await _assert_alive(peer, 2)
        with pytest.raises(FileNotFoundError):
            await RawPeer(server.addresses[0]).__aenter__()


async def test_socket_file_has_mode_0660_and_goes_with_the_server(short_dir: Path) -> None:
    path = short_dir / "prebled.sock"
    async with serving(unix(short_dir)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


async def test_a_stale_socket_file_is_replaced(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_dir / "prebled.sock"))
    async with serving(unix(short_dir)) as (server, _), RawPeer(server.addresses[0]) as peer:
        await _assert_alive(peer, 1)


async def test_a_live_socket_is_refused_and_stays(short_dir: Path) -> None:
    async with serving(unix(short_dir)) as (server, _):
        with pytest.raises(SettingsError, match=r"prebled\.sock: another process"):
            async with serving(unix(short_dir)):
                pass
        async with RawPeer(server.addresses[0]) as peer:
            await _assert_alive(peer, 1)


async def test_a_file_that_is_no_socket_is_never_removed(short_dir: Path) -> None:
    (short_dir / "prebled.sock").write_text("precious")
    with pytest.raises(SettingsError, match="no socket"):
        async with serving(unix(short_dir)):
            pass
    assert (short_dir / "prebled.sock").read_text() == "precious"


async def test_another_servers_file_is_not_removed(short_dir: Path) -> None:
    path = short_dir / "prebled.sock"
    async with serving(unix(short_dir)):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_a_port_in_use_is_named_and_nothing_stays_behind(short_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=address):
            async with SocketServer(ScriptedGateway(), [unix(short_dir), address], LimitSettings()):
                pass
    assert os.listdir(short_dir) == []


async def test_a_missing_folder_is_named(short_dir: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere/prebled\.sock: No such file"):
        async with serving(unix(short_dir / "nowhere")):
            pass
