"""The newest frames of a worker, kept so that what ZeroMQ dropped can be sent again. It does not know what is in them.

Bounded by count and bytes; past either bound the oldest frames go, and whoever asks for them learns where the rest
begins.
"""

from __future__ import annotations

from collections import deque
from itertools import islice


class FrameRing:
    """Frames numbered from 1, without holes."""

    def __init__(self, most_frames: int, most_bytes: int) -> None:
        self._most_frames = most_frames
        self._most_bytes = most_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self.next_seq = 1

    def add(self, frame: bytes) -> None:
        """Keep the frame `next_seq`."""
        self._frames.append(frame)
        self._bytes += len(frame)
        self.next_seq += 1
        while len(self._frames) > self._most_frames or self._bytes > self._most_bytes:
            self._bytes -= len(self._frames.popleft())

    def since(self, first: int, last: int, most_bytes: int) -> tuple[int, list[bytes]]:
        """The kept frames from `first` to `last` (inclusive), and the number of the first of them.

        Where the oldest kept is newer than `first`, that is where they begin (`next_seq` if none is kept). They end
        early where they would exceed `most_bytes`, but one is always given.
        """
        oldest = self.next_seq - len(self._frames)
        begin = max(first, oldest)
        frames: list[bytes] = []
        size = 0
        for frame in islice(self._frames, begin - oldest, max(last + 1 - oldest, begin - oldest)):
            size += len(frame)
            if frames and size > most_bytes:
                break
            frames.append(frame)
        return begin, frames

    def clear(self) -> None:
        """Forget the frames; numbering goes on."""
        self._frames.clear()
        self._bytes = 0
