"""One worker's stream of frames, put back into order: every frame is released exactly once, or its runs are lost.

Frames come over a socket that may drop them (ZeroMQ's publish side drops when a pipe is full), ends of runs over
another one that may overtake it. The rule kept here: tokens of a run are released in order, none twice, none missing;
a run's end comes after its last token; where that cannot be held, the run is reported lost and nothing more of it is
released. A missing frame is asked for again from the worker's ring. Frames about the worker's cache are numbered with
the others, so that what a run stored is known before it ends; what a hole in them means is `kv_stream`'s to know.

Pure: `now` (seconds, any monotonic origin) is an argument, what is to be done is returned. It knows nothing of sockets,
requests or other workers. One instance serves one life of a worker as one daemon sees it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import msgspec

from prebled.core.types import Epoch, RunId
from prebled.daemon.kv_stream import KvOutput, KvStream
from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import FRAME, Chunk, Done, Failed, Frame, Replay, Replayed, Tokens

WINDOW_FRAMES = 1024
"""Frames held while an earlier one is missing. Full: later frames are dropped and asked for again in their turn."""

ASK_FRAMES = 256
"""Most frames asked for at once, so that an answer stays a message of moderate size."""

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no message."""

LEAST_REPLAY_AFTER_S = 0.01
"""Below this, frames that merely took the other socket's turn would be asked for."""


class RunsLost(msgspec.Struct, frozen=True):
    """The frames first_seq..last_seq cannot be had any more, and these runs may have had tokens in them."""

    run_ids: tuple[RunId, ...]
    first_seq: int
    last_seq: int


class StreamBroken(msgspec.Struct, frozen=True):
    """The worker does not give what is missing, however often asked: it has to be greeted anew."""

    reason: str


Output: TypeAlias = Chunk | Done | Failed | KvOutput | Replay | RunsLost | StreamBroken
"""What a step brings: chunks, ends and news of the cache in the order in which they are to be passed on, asks to send,
bad news."""


class Sequencer:
    """`next_seq` is the first frame to expect, as the worker's Ready names it. A frame missing for `replay_after_s` is
    asked for, then again at doubling intervals; when that has brought nothing for `give_up_s`, the stream is broken.

    A run is live from `expect` until its end is released or it is reported lost; chunks and ends of other runs are
    dropped. A Failed ends its run at once, even if frames are missing: its error stands, and a run that continues
    elsewhere does so from what was released. `kv` is told of the frames that are its own, of holes and of the time.
    """

    def __init__(
        self,
        epoch: Epoch,
        next_seq: int,
        kv: KvStream,
        *,
        replay_after_s: float,
        give_up_s: float,
        counts: StreamCounts,
    ) -> None:
        self._epoch = epoch
        self._next = next_seq
        self._known = next_seq - 1  # the newest frame that is known to exist
        self._replay_after_s = max(replay_after_s, LEAST_REPLAY_AFTER_S)
        self._give_up_s = give_up_s
        self._counts = counts
        self.kv = kv
        self._live: set[RunId] = set()
        self._held: dict[int, Frame] = {}  # arrived before an earlier one
        self._ends: dict[int, list[Done]] = {}  # by last_seq, not released yet
        self._ending: set[RunId] = set()  # runs in _ends
        self._ask: Replay | None = None  # not answered yet
        self._ask_at: float | None = None  # when to ask (again); None while nothing is missing
        self._asks = 0  # for the first missing frame
        self._first_ask_at = 0.0

    @property
    def live_runs(self) -> frozenset[RunId]:
        """Runs that have not ended."""
        return frozenset(self._live)

    @property
    def has_gap(self) -> bool:
        """Whether a frame is known to be missing."""
        return self._ask_at is not None

    def expect(self, run_id: RunId) -> None:
        """This run goes to the worker now."""
        self._live.add(run_id)

    def drop(self, run_ids: Collection[RunId]) -> None:
        """Nothing more of these runs is wanted."""
        self._live.difference_update(run_ids)

    def take_frame(self, frame: Frame, now: float) -> list[Output]:
        """A frame arrived."""
        out: list[Output] = []
        before = self._next
        self._accept(frame, out)
        self._watch_gap(before, now)
        return out

    def take_end(self, end: Done | Failed, now: float) -> list[Output]:
        """The end of a run was told; a Done waits for the frames it names."""
        if end.epoch != self._epoch:
            self._counts.stale_frames += 1
            return []
        if end.run_id not in self._live or end.run_id in self._ending:
            self._counts.late_ends += 1
            return []
        if isinstance(end, Failed) or end.last_seq < self._next:
            self._live.remove(end.run_id)
            return [end]
        self._ends.setdefault(end.last_seq, []).append(end)
        self._ending.add(end.run_id)
        self.take_last_seq(end.last_seq, now)
        return []

    def take_last_seq(self, last_seq: int, now: float) -> None:
        """The worker says that it has published frames up to this one."""
        self._known = max(self._known, last_seq)
        self._watch_gap(self._next, now)

    def take_replayed(self, replayed: Replayed, now: float) -> list[Output]:
        """The worker's ring answered. What it no longer holds is a hole; what else is missing is asked for at once."""
        if replayed.epoch != self._epoch:
            self._counts.stale_frames += 1
            return []
        out: list[Output] = []
        before = self._next
        ask, self._ask = self._ask, None
        if ask is not None:
            # Never beyond what was asked: an answer is not believed about frames that it is not about.
            self._skip_to(min(replayed.first_seq, ask.last_seq + 1), out, now)
        for raw in replayed.frames:
            try:
                frame = FRAME.decode(raw)
            except UNDECODABLE:
                self._counts.bad_frames += 1
            else:
                self._accept(frame, out)
        self._watch_gap(before, now)
        if self._ask_at is not None and self._next > before:
            out.append(self._make_ask(now))
        return out

    def tick(self, now: float) -> list[Output]:
        """Time passed: ask for what is missing long enough. Wanted a few times per `replay_after_s`."""
        out: list[Output] = [*self.kv.tick(now)]
        if self._ask_at is None or now < self._ask_at:
            return out
        if self._asks and now - self._first_ask_at >= self._give_up_s:
            self._ask_at = None
            return [StreamBroken(f"frame {self._next} was asked for {self._asks} times and never came")]
        return [*out, self._make_ask(now)]

    def _accept(self, frame: Frame, out: list[Output]) -> None:
        if frame.epoch != self._epoch:
            self._counts.stale_frames += 1
            return
        seq = frame.seq
        self._known = max(self._known, seq)
        if seq < self._next or seq in self._held:
            self._counts.duplicate_frames += 1
        elif seq == self._next:
            self._release(frame, out)
            self._release_held(out)
        elif seq - self._next < WINDOW_FRAMES:
            self._held[seq] = frame
        else:
            self._counts.dropped_frames += 1

    def _release_held(self, out: list[Output]) -> None:
        while self._held and (frame := self._held.pop(self._next, None)) is not None:
            self._release(frame, out)

    def _release(self, frame: Frame, out: list[Output]) -> None:
        live = self._live
        if isinstance(frame, Tokens):
            passed = [chunk for chunk in frame.chunks if chunk.run_id in live]
            out += passed
            self._counts.late_chunks += len(frame.chunks) - len(passed)
        else:
            self._counts.kv_frames += 1
            out += self.kv.take_frame(frame)
        self._counts.frames += 1
        self._next = frame.seq + 1
        for end in self._ends.pop(frame.seq, ()):
            self._ending.remove(end.run_id)
            if end.run_id in live:
                live.remove(end.run_id)
                out.append(end)

    def _skip_to(self, seq: int, out: list[Output], now: float) -> None:
        """Give up the frames before `seq`. Any live run may have had tokens in them, ended ones that wait included:
        their end names a frame that was not released yet."""
        if seq <= self._next:
            return
        self._counts.holes += 1
        if self._live:
            out.append(RunsLost(tuple(sorted(self._live)), self._next, seq - 1))
        self._live.clear()
        self._ends.clear()
        self._ending.clear()
        self._held = {held: frame for held, frame in self._held.items() if held >= seq}
        self._next = seq
        out += self.kv.take_hole(seq - 1, now)
        self._release_held(out)

    def _watch_gap(self, before: int, now: float) -> None:
        """Start, restart or stop the clock of the first missing frame; `before` is what `_next` was before the step."""
        if self._next > self._known:
            self._ask = self._ask_at = None
        elif self._ask_at is None or self._next > before:
            self._ask_at = now + self._replay_after_s
            self._asks = 0

    def _make_ask(self, now: float) -> Replay:
        last = min(self._known, self._next + ASK_FRAMES - 1)
        if self._held:
            last = min(last, min(self._held) - 1)
        self._ask = Replay(self._next, last)
        if self._asks == 0:
            self._counts.gaps += 1
            self._first_ask_at = now
        self._asks += 1
        self._ask_at = now + self._replay_after_s * 2**self._asks
        self._counts.replays += 1
        return self._ask
