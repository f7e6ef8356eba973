"""Framing of the native protocol, the same at both ends of a socket.

A connection opens with `PREFACE` from the client: seven letters and the protocol version, so that a stray HTTP client
or a client of another version is told so instead of being misread. Then both sides send frames: a length (4 bytes,
big-endian, of what follows) and one msgpack-encoded message of `prebled.messages`. The length is bounded by whoever
reads. What is in a frame is not known here.
"""

from __future__ import annotations

import struct

import msgspec

from prebled.errors import PayloadTooLarge, ProtocolError
from prebled.messages import PROTOCOL_VERSION, encode

MAGIC = b"PREBLED"
PREFACE = MAGIC + bytes([PROTOCOL_VERSION])
HEADER = struct.Struct(">I")
MAX_LENGTH = 2**32 - 1


def pack(message: msgspec.Struct) -> bytes:
    """One frame. Raises PayloadTooLarge beyond what a length can say."""
    payload = encode(message)
    if len(payload) > MAX_LENGTH:
        raise PayloadTooLarge(f"a message of {len(payload)} bytes; a frame holds at most {MAX_LENGTH}")
    return HEADER.pack(len(payload)) + payload


class FrameSplitter:
    """Cuts a stream of bytes, fed in pieces of any size, into the payloads of its frames."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes. Raises ProtocolError for a length beyond the bound; the stream cannot be
        read any further then."""
        self._buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            if length > self._max_frame_bytes:
                raise ProtocolError(self._too_long(start, length))
            end = start + HEADER.size + length
            if end > len(self._buffer):
                break
            payloads.append(bytes(self._buffer[start + HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return payloads

    def _too_long(self, start: int, length: int) -> str:
        head = bytes(self._buffer[start : start + 16])
        return f"a frame of {length} bytes, at most {self._max_frame_bytes} are taken (it begins with {head!r})"
