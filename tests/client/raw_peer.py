"""A native client that says exactly what a test wants, right or wrong."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import msgspec

from prebled.addresses import UnixAddress, parse_address
from prebled.messages import FROM_DAEMON, FromDaemon
from prebled.wire import HEADER, PREFACE, pack


class RawPeer:
    """One connection, opened with `preface`."""

    def __init__(self, address: str, preface: bytes = PREFACE) -> None:
        self._address = parse_address(address)
        self._preface = preface

    async def __aenter__(self) -> Self:
        if isinstance(self._address, UnixAddress):
            self.reader, self.writer = await asyncio.open_unix_connection(self._address.path)
        else:
            self.reader, self.writer = await asyncio.open_connection(self._address.host, self._address.port)
        self.writer.write(self._preface)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, *messages: msgspec.Struct) -> None:
        for message in messages:
            self.writer.write(pack(message))

    def send_raw(self, payload: bytes) -> None:
        """One frame with these bytes in it."""
        self.writer.write(HEADER.pack(len(payload)) + payload)

    def send_value(self, value: Any) -> None:
        """One frame with any msgpack in it."""
        self.send_raw(msgspec.msgpack.encode(value))

    async def read(self) -> FromDaemon:
        (length,) = HEADER.unpack(await self.reader.readexactly(HEADER.size))
        message: FromDaemon = FROM_DAEMON.decode(await self.reader.readexactly(length))
        return message

    async def read_kind(self, kind: type, call: int | None) -> Any:
        """The next message of this kind for this call; others are passed over."""
        async with asyncio.timeout(5):
            while True:
                message = await self.read()
                if isinstance(message, kind) and message.call == call:
                    return message

    async def read_end(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(5):
            return await self.reader.read()
