"""The writing side of one native connection: bounded, and never in the way of reading.

Streams write only while the socket takes more (`wait_writable`); short answers may go past that, up to a second bound
at which a client that asks and asks but never reads is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import structlog

from prebled.daemon.gateway import GenerationStream
from prebled.wire import pack

log = structlog.get_logger()

HIGH_WATER_BYTES = 64 * 1024
"""Unsent bytes past which streams wait for the socket."""
MOST_UNSENT_BYTES = 4 * 1024 * 1024
"""Unsent bytes past which the client is dropped."""
STUCK_S = 1.0
"""How long a client may still take nothing after one of its streams was ended for that."""
LINGER_S = 2.0
"""How long input is read and thrown away after the last words: closing at once would reset the connection, and the
client might never see what was wrong."""


class AnswerWriter:
    """Writes the answers of all calls of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._has_ended = False

    @property
    def is_closing(self) -> bool:
        """The client is gone, dropped or told goodbye; nothing can be written any more."""
        return self._has_ended or self._transport.is_closing()

    def write_nowait(self, message: msgspec.Struct) -> None:
        """Send one message, or queue it behind what is unsent. Nothing happens once the connection is closing."""
        if self.is_closing:
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes > MOST_UNSENT_BYTES:
            log.warning("native client dropped: it asks but does not read", unsent_bytes=unsent_bytes)
            self._transport.abort()
            return
        self._writer.write(pack(message))

    async def wait_writable(self, stream: GenerationStream) -> None:
        """Wait until the socket takes more. Raises what ended `stream` meanwhile, ConnectionError if the client went.

        All streams of the connection wait here together; each looks again, because the first to go on may fill it."""
        while self._transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            drained = asyncio.ensure_future(self._writer.drain())
            failed = asyncio.ensure_future(stream.wait_failed())
            try:
                await asyncio.wait((drained, failed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                drained.cancel()
                failed.cancel()
                _, failure = await asyncio.gather(drained, failed, return_exceptions=True)
            if isinstance(failure, Exception):
                raise failure
            if self.is_closing:
                raise ConnectionResetError("the client is gone")

    async def drop_if_stuck(self) -> None:
        """Drop the client unless it takes something soon."""
        try:
            async with asyncio.timeout(STUCK_S):
                await self._writer.drain()
        except TimeoutError:
            log.warning("native client dropped: it does not read")
            self._transport.abort()
        except ConnectionError:
            pass

    async def say_goodbye(self, last_words: bytes) -> None:
        """Send last words, if any, and read on for a moment, so that they are not lost to a reset."""
        if not last_words or self.is_closing:
            return
        self._has_ended = True
        self._writer.write(last_words)
        with contextlib.suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(LINGER_S):
                self._writer.write_eof()
                while await self._reader.read(HIGH_WATER_BYTES):
                    pass

    async def close(self) -> None:
        """Send what is unsent, if the client takes it in time, and close."""
        self._writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(STUCK_S):
                await self._writer.wait_closed()
        self._transport.abort()
