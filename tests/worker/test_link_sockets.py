"""What the worker's sockets promise about order, dead connections and subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from prebled.addresses import fabric_endpoints
from prebled.core.types import Epoch, WorkerId
from prebled.worker import link_sockets
from prebled.worker.link_sockets import LinkSockets

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def address(short_dir: Path) -> str:
    return f"unix:{short_dir}/fabric.sock"


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


async def send_when_connected(sockets: LinkSockets, message: bytes) -> None:
    for _ in range(500):
        if sockets.send(message):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no connection")


async def test_what_was_kept_goes_first_and_what_was_forgotten_never(
    address: str, context: zmq.asyncio.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_sockets, "OUTBOX_MESSAGES", 2)
    sockets = LinkSockets(address, WorkerId("w7"), Epoch(1))
    assert sockets.send_surely(b"forgotten")
    sockets.forget_unsent()
    assert [sockets.send_surely(b"1"), sockets.send_surely(b"2"), sockets.send_surely(b"3")] == [True, True, False]
    assert not sockets.send(b"4")  # nobody is there
    router = context.socket(zmq.ROUTER)
    router.bind(fabric_endpoints(address)[0])
    receiving = asyncio.ensure_future(router.recv_multipart())  # a socket that nobody reads takes no connection
    await send_when_connected(sockets, b"5")
    received = [await receiving, await router.recv_multipart(), await router.recv_multipart()]
    assert received == [[b"w7.1", b"1"], [b"w7.1", b"2"], [b"w7.1", b"5"]]
    router.close(linger=0)
    sockets.close()


async def test_the_last_messages_before_closing_arrive(address: str, context: zmq.asyncio.Context) -> None:
    sockets = LinkSockets(address, WorkerId("w7"), Epoch(1))
    router = context.socket(zmq.ROUTER)
    router.bind(fabric_endpoints(address)[0])
    receiving = asyncio.ensure_future(router.recv_multipart())
    await send_when_connected(sockets, b"hello")
    await receiving
    before = [bytes(50_000)] * 300  # more than the kernel's buffers take at once
    assert all(sockets.send(message) for message in [*before, b"farewell"])
    sockets.close()
    sockets.close()
    for message in [*before, b"farewell"]:
        assert await router.recv_multipart() == [b"w7.1", message]
    router.close(linger=0)


async def test_a_subscription_is_of_the_connection_that_brought_it(address: str, context: zmq.asyncio.Context) -> None:
    sockets = LinkSockets(address, WorkerId("w7"), Epoch(1))
    for _ in range(2):
        daemon = context.socket(zmq.SUB)
        daemon.setsockopt(zmq.SUBSCRIBE, b"epoch")
        daemon.bind(fabric_endpoints(address)[1])
        receiving = asyncio.ensure_future(daemon.recv_multipart())
        assert not sockets.is_subscribed(b"epoch")
        await sockets.wait_subscription()
        assert sockets.is_subscribed(b"epoch")
        sockets.publish(b"epoch", b"frame")
        assert await receiving == [b"epoch", b"frame"]
        daemon.close(linger=0)
        await sockets.wait_subscription()
    assert not sockets.is_subscribed(b"epoch")
    sockets.close()
