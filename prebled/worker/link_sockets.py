"""The worker's two ZeroMQ sockets: control (DEALER) and events (XPUB), both dialling the daemon's stable addresses.

Rules kept here: nothing waits in a queue for a daemon that is not connected (ZMQ_IMMEDIATE), so a new life of the
daemon is not flooded with what was meant for the old one; sending never blocks, it says no. Messages are bytes here.

Bounds: control, CONTROL_MESSAGES each way (full: sending says no, and what has to arrive waits in the outbox; incoming
ones wait at the daemon); the outbox, OUTBOX_MESSAGES (full: sending says no for good, the daemon has to be given up);
events, EVENT_FRAMES (full: ZeroMQ drops, the daemon notices by the numbers and asks for the frames again).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from prebled.addresses import fabric_endpoints
from prebled.core.types import Epoch, WorkerId

CONTROL_MESSAGES = 1000
OUTBOX_MESSAGES = 16_384
EVENT_FRAMES = 1000
FAREWELL_MS = 500
"""How long closing may take to send the last messages to a connected daemon."""

HEARTBEAT_MS = 5_000
"""On TCP: how often a silent connection is tried. After three times as long without an answer it counts as broken;
without this a host that vanished would be waited for until TCP gives up."""

SUBSCRIBED, UNSUBSCRIBED = b"\x01", b"\x00"


class LinkSockets:
    """Made in the running loop that uses it; connects on construction. Raises SettingsError for a bad address.

    The `epoch` is part of how the daemon's socket knows us: of two processes with one worker id the daemon can then
    speak to the older one too, and send it away, instead of losing sight of it with its GPU taken.
    """

    def __init__(self, address: str, worker_id: WorkerId, epoch: Epoch) -> None:
        control, events = fabric_endpoints(address)
        self._context = zmq.asyncio.Context(io_threads=1)
        self._control = self._socket(zmq.DEALER, control)
        self._control.setsockopt(zmq.IDENTITY, f"{worker_id}.{epoch:x}".encode())
        self._control.setsockopt(zmq.SNDHWM, CONTROL_MESSAGES)
        self._control.setsockopt(zmq.RCVHWM, CONTROL_MESSAGES)
        self._events = self._socket(zmq.XPUB, events)
        self._events.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._events.setsockopt(zmq.SNDHWM, EVENT_FRAMES)
        self._monitor = self._control.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._topics: set[bytes] = set()
        self._outbox: deque[bytes] = deque()
        self._control.connect(control)
        self._events.connect(events)

    def send(self, message: bytes) -> bool:
        """Send a control message, behind those in the outbox; False if none can be taken now (no connection, or the
        queue is full)."""
        return self.flush() and _send_nowait(self._control, [message])

    def send_surely(self, message: bytes) -> bool:
        """Send a control message, or keep it until `flush`; False if there is no room to keep it."""
        if self.send(message):
            return True
        if len(self._outbox) >= OUTBOX_MESSAGES:
            return False
        self._outbox.append(message)
        return True

    def flush(self) -> bool:
        """Send what was kept; whether all of it could be sent."""
        while self._outbox and _send_nowait(self._control, [self._outbox[0]]):
            self._outbox.popleft()
        return not self._outbox

    def forget_unsent(self) -> None:
        """Drop what was kept."""
        self._outbox.clear()

    def publish(self, topic: bytes, frame: bytes) -> None:
        """Send a frame to who subscribes to the topic; it may be dropped."""
        _send_nowait(self._events, [topic, frame])

    def is_subscribed(self, topic: bytes) -> bool:
        """Whether the daemon's subscription to it was seen on the present connection."""
        return topic in self._topics

    async def receive(self) -> list[bytes]:
        """The parts of the next control message."""
        parts: list[bytes] = await self._control.recv_multipart()
        return parts

    async def wait_subscription(self) -> None:
        """Wait until a subscription comes or goes."""
        change: bytes = await self._events.recv()
        if change[:1] == SUBSCRIBED:
            self._topics.add(change[1:])
        elif change[:1] == UNSUBSCRIBED:
            self._topics.discard(change[1:])

    async def wait_disconnect(self) -> None:
        """Wait until the control connection breaks; messages of both directions may be lost with it."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_DISCONNECTED:
                return

    def close(self) -> None:
        """Close, after the last messages are sent or FAREWELL_MS have passed. Safe to call twice."""
        if self._context.closed:
            return
        self._control.disable_monitor()
        self._control.close(linger=FAREWELL_MS)
        self._events.close(linger=FAREWELL_MS)
        self._context.destroy(linger=0)

    def _socket(self, kind: int, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        if endpoint.startswith("tcp://"):
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        if "[" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        return socket


def _send_nowait(socket: zmq.asyncio.Socket, parts: list[bytes]) -> bool:
    # With NOBLOCK the future is resolved when it is returned.
    sent: Any = socket.send_multipart(parts, zmq.NOBLOCK)
    try:
        sent.result()
    except zmq.Again:
        return False
    return True
