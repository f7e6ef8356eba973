"""The fabric's two ZeroMQ sockets on the event loop: binding, sending, and taking off all messages that are there.

A ZeroMQ file descriptor is edge-triggered, and sending consumes its edges too: after any wake-up or send the socket has
to be read until it is empty. That rule is kept here and nowhere else. Messages are decoded here; what does not decode
is counted, logged and dropped. It knows no workers, only identities (whatever name a peer's DEALER socket has).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
import zmq

from prebled.addresses import fabric_endpoints
from prebled.core.types import Epoch, WorkerId
from prebled.daemon.sequencer import UNDECODABLE
from prebled.errors import SettingsError
from prebled.messages import FRAME, FROM_WORKER, PROTOCOL_VERSION, Frame, FromWorker, Hello, ToWorker, encode

log = structlog.get_logger()

SEND_MESSAGES = 1000
"""Messages that may wait for one worker. Full: sending fails, and says so."""

RECEIVE_MESSAGES = 4096
"""Messages of one worker that may wait for us. Full: its control messages wait there, its frames are dropped there."""

MOST_MESSAGE_BYTES = 128 * 1024 * 1024
"""A larger message costs its sender the connection."""

TURN_S = 0.002
"""Longest uninterrupted reading of one socket; what is left waits for the loop's next turn."""


class FabricSockets:
    """`take_message(identity, message)` and `take_frame(frame)` are called for what arrives, in order per socket. An
    exception of theirs is logged and counted, and costs that message only."""

    def __init__(
        self,
        address: str,
        topic: bytes,
        take_message: Callable[[bytes, FromWorker], None],
        take_frame: Callable[[Frame], None],
    ) -> None:
        self._address = address
        self._endpoints = fabric_endpoints(address)
        self._topic = topic
        self._take_message = take_message
        self._take_frame = take_frame
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pumps: list[_Pump] = []
        self.bad_messages = 0
        self.bad_frames = 0
        self.unreachable = 0

    @property
    def callback_errors(self) -> int:
        """How often one of the two callbacks raised."""
        return sum(pump.errors for pump in self._pumps)

    def open(self) -> None:
        """Bind both. Needs the running loop. Raises SettingsError where the address cannot be bound."""
        self._context = zmq.Context(io_threads=1)
        self._router = self._socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a lost worker is noticed by sending to it
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker that dials again takes over from its dead connection
        events = self._socket(zmq.SUB)
        events.setsockopt(zmq.SUBSCRIBE, self._topic)
        control_endpoint, events_endpoint = self._endpoints
        try:
            events.bind(events_endpoint)  # first, so that who is welcomed finds it
            self._router.bind(control_endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise SettingsError(
                f"fabric address {self._address!r}: {error.strerror}", param="fabric_address"
            ) from error
        self._control_pump = _Pump(self._router, self._take_control)
        self._pumps = [self._control_pump, _Pump(events, self._take_event)]

    def close(self) -> None:
        """Close both; what was not sent yet is dropped. Safe to call twice."""
        for pump in self._pumps:
            pump.close()
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def send(self, identity: bytes, message: ToWorker) -> str:
        """Send to whoever has this identity, without waiting. Empty if all is well, else why it could not be sent."""
        try:
            self._router.send_multipart([identity, encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            trouble = f"{SEND_MESSAGES} messages wait for it already"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            trouble = "its connection is gone"
        else:
            trouble = ""
        self.unreachable += bool(trouble)
        self._control_pump.wake()
        return trouble

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        assert self._context is not None
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, SEND_MESSAGES)
        socket.setsockopt(zmq.RCVHWM, RECEIVE_MESSAGES)
        socket.setsockopt(zmq.MAXMSGSIZE, MOST_MESSAGE_BYTES)
        socket.setsockopt(zmq.IPV6, int("[" in self._endpoints[0]))
        return socket

    def _take_control(self, parts: list[bytes]) -> None:
        identity, raw = parts[0], parts[-1]
        message = _decode(raw) if len(parts) == 2 else None
        if message is not None:
            self._take_message(identity, message)
            return
        self.bad_messages += 1
        log.warning("a control message did not decode", identity=identity.hex(), parts=len(parts), size=len(raw))

    def _take_event(self, parts: list[bytes]) -> None:
        try:
            frame = FRAME.decode(parts[-1])
        except UNDECODABLE as error:
            self.bad_frames += 1
            log.warning("a frame did not decode", error=str(error), parts=len(parts), size=len(parts[-1]))
        else:
            self._take_frame(frame)


def _decode(raw: bytes) -> FromWorker | None:
    try:
        message: FromWorker = FROM_WORKER.decode(raw)
    except UNDECODABLE:
        return _foreign_hello(raw)
    return message


def _foreign_hello(raw: bytes) -> Hello | None:
    """Another version's Hello may have another shape, but its tag and version come first in any: it becomes a Hello of
    ours that carries that version, so that it is refused by name."""
    try:
        foreign: Any = msgspec.msgpack.decode(raw)
    except UNDECODABLE:
        return None
    match foreign:
        case ["Hello", int(version), *_] if version != PROTOCOL_VERSION:
            return Hello(version, WorkerId("?"), Epoch(0), 0, "")
    return None


class _Pump:
    """Takes messages off one socket."""

    def __init__(self, socket: zmq.Socket[bytes], take: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._soon: asyncio.Handle | None = None
        self._file = socket.fileno()
        self.errors = 0
        self._loop.add_reader(self._file, self._read)
        self.wake()  # what came before the reader was there makes no edge

    def wake(self) -> None:
        """Read on the loop's next turn."""
        if self._soon is None:
            self._soon = self._loop.call_soon(self._read)

    def close(self) -> None:
        """Read no more. To be called before the socket is closed; safe to call twice."""
        self._loop.remove_reader(self._file)
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _read(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        end = self._loop.time() + TURN_S
        while not self._socket.closed:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take(parts)
            except Exception:
                self.errors += 1
                log.exception("what a worker sent could not be worked off")
            if self._loop.time() >= end:
                self.wake()
                return
