"""The sequencer and its view of the cache, under any mix of drops, doubles, reorderings and too short rings."""

from __future__ import annotations

import dataclasses
import random
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from naive_cache import NaiveCache, removed, stored
from stream_parts import EPOCH, done, frame, kv, opened_kv, snapshot

from prebled.core.types import RunId
from prebled.daemon.kv_stream import KvHeld
from prebled.daemon.sequencer import Output, RunsLost, Sequencer
from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import (
    Chunk,
    Done,
    Frame,
    GetSnapshot,
    KvChange,
    KvChanged,
    KvCleared,
    KvSnapshot,
    Replay,
    Replayed,
    encode,
)


@dataclasses.dataclass
class Life:
    """What a worker publishes: the frames, the ends that come with each, and what the cache holds after each."""

    frames: list[Frame]
    ends: dict[int, list[Done]]
    tokens: dict[RunId, list[int]]
    caches: list[NaiveCache]


def make_life(rng: random.Random, runs: int) -> Life:
    life = Life([], {}, {RunId(f"r{n}"): [] for n in range(runs)}, [NaiveCache()])
    left = {run_id: rng.randint(0, 8) for run_id in life.tokens}
    while left or rng.random() < 0.7:
        cache = life.caches[-1].copy()
        if not left or rng.random() < 0.4:
            changes = [random_change(rng, cache) for _ in range(rng.randint(1, 3))]
            life.frames.append(kv(len(life.frames) + 1, *changes))
        else:
            life.frames.append(frame(len(life.frames) + 1, *random_chunks(rng, left, life)))
        life.caches.append(cache)
    return life


def random_change(rng: random.Random, cache: NaiveCache) -> KvChange:
    """A change that the cache makes now, few enough blocks for some to go and come again."""
    held = sorted(cache.parents)
    kind = rng.random()
    change: KvChange
    if kind < 0.05:
        change = KvCleared()
    elif kind < 0.4 and held:
        change = removed(*rng.sample(held, rng.randint(1, min(2, len(held)))))
    else:
        free = [block for block in range(1, 12) if block not in cache.parents]
        parent = rng.choice([*held, None]) if held else None
        change = stored(*rng.sample(free, min(len(free), rng.randint(1, 3))), parent=parent)
    cache.apply(change)
    return change


def random_chunks(rng: random.Random, left: dict[RunId, int], life: Life) -> list[Chunk]:
    seq = len(life.frames) + 1
    chunks = []
    for run_id in rng.sample(sorted(left), rng.randint(1, len(left))):
        new = [rng.randrange(1000) for _ in range(min(left[run_id], rng.randint(1, 3)))]
        left[run_id] -= len(new)
        life.tokens[run_id] += new
        if new:
            chunks.append(Chunk(run_id, tuple(new)))
        if not left[run_id]:
            del left[run_id]
            life.ends.setdefault(seq, []).append(done(run_id, seq))
    return chunks


class Wire:
    """Everything between a worker and the sequencer, misbehaving as `rng` will have it."""

    def __init__(self, rng: random.Random, life: Life, ring: int, loss: float) -> None:
        self.rng, self.life, self.ring, self.loss = rng, life, ring, loss
        self.published = 0
        self.events: list[Frame] = []  # on the way, in any order
        self.control: deque[Done | Replayed | KvSnapshot | int] = deque()  # on the way, in order
        self.asks: deque[Replay | GetSnapshot] = deque()
        self.counts = StreamCounts()
        kv_stream = opened_kv(self.counts)
        self.sequencer = Sequencer(EPOCH, 1, kv_stream, replay_after_s=0.1, give_up_s=5, counts=self.counts)
        self.got: dict[RunId, list[int]] = {run_id: [] for run_id in life.tokens}
        self.ended: dict[RunId, str] = {}
        self.cache = NaiveCache()
        self.is_cache_true = True
        self.snapshot_seq = 0  # of the snapshot that is being taken
        self.now = 0.0
        for run_id in life.tokens:
            self.sequencer.expect(run_id)

    def publish(self) -> None:
        if self.published == len(self.life.frames):
            return
        frame = self.life.frames[self.published]
        self.published += 1
        copies = 0 if self.rng.random() < self.loss else self.rng.choice([1, 1, 1, 2])
        self.events += [frame] * copies
        self.control += self.life.ends.get(frame.seq, [])
        if self.rng.random() < 0.2:
            self.control.append(self.published)

    def deliver_event(self) -> None:
        if self.events:
            self.take(self.sequencer.take_frame(self.events.pop(self.rng.randrange(len(self.events))), self.now))

    def deliver_control(self) -> None:
        if not self.control:
            return
        match self.control.popleft():
            case Done() as end:
                self.take(self.sequencer.take_end(end, self.now))
            case Replayed() as answer:
                self.take(self.sequencer.take_replayed(answer, self.now))
            case KvSnapshot() as part:
                self.snapshot_seq = part.last_seq
                self.take(self.sequencer.kv.take_snapshot(part, self.now))
            case int() as last_seq:
                self.sequencer.take_last_seq(last_seq, self.now)

    def answer(self) -> None:
        if not self.asks:
            return
        match self.asks.popleft():
            case Replay() as ask:
                first = max(ask.first_seq, self.published - self.ring + 1)
                frames = self.life.frames[first - 1 : ask.last_seq]
                self.control.append(Replayed(EPOCH, first, tuple(encode(f) for f in frames)))
            case GetSnapshot():
                runs = self.life.caches[self.published].runs()
                self.control.append(snapshot(self.published, *runs[:1], is_last=len(runs) < 2))
                if len(runs) > 1:
                    self.control.append(snapshot(self.published, *runs[1:], part=1))

    def tick(self) -> None:
        self.now += 0.07
        self.take(self.sequencer.tick(self.now))

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Chunk(run_id, tokens):
                    assert run_id not in self.ended, "tokens after the end"
                    self.got[run_id] += tokens
                case Done(run_id=run_id):
                    assert run_id not in self.ended, "two ends"
                    self.ended[run_id] = "done"
                case RunsLost(run_ids):
                    assert not set(run_ids) & self.ended.keys(), "two ends"
                    self.ended.update(dict.fromkeys(run_ids, "lost"))
                case KvHeld(runs):
                    self.cache = NaiveCache(runs)
                    self.is_cache_true = True
                    assert self.cache == self.life.caches[self.snapshot_seq]
                case KvChanged(seq=seq, changes=changes):
                    for change in changes:
                        self.cache.apply(change)
                    assert not self.is_cache_true or self.cache == self.life.caches[seq]
                case Replay() | GetSnapshot():
                    self.asks.append(output)
                    self.is_cache_true &= isinstance(output, Replay)
                case _:
                    raise AssertionError(output)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    runs=st.integers(0, 6),
    ring=st.sampled_from([1, 3, 10, 1000]),
    loss=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
)
def test_no_token_is_lost_or_doubled_and_the_cache_is_known(seed: int, runs: int, ring: int, loss: float) -> None:
    rng = random.Random(seed)
    wire = Wire(rng, make_life(rng, runs), ring, loss)
    moves = [wire.publish, wire.deliver_event, wire.deliver_control, wire.answer, wire.tick]
    for _ in range(rng.randint(0, 150)):
        rng.choice(moves)()
    while wire.published < len(wire.life.frames) or wire.events or wire.control or wire.asks or wire.sequencer.has_gap:
        for move in moves:
            move()
    wire.control.append(wire.published)  # a last beat: nothing else tells of the last frames
    while wire.control or wire.asks or wire.sequencer.has_gap:
        for move in moves:
            move()
    assert wire.ended.keys() == wire.life.tokens.keys()
    assert wire.sequencer.live_runs == frozenset()
    for run_id, tokens in wire.life.tokens.items():
        got = wire.got[run_id]
        assert got == (tokens if wire.ended[run_id] == "done" else tokens[: len(got)])
    assert wire.is_cache_true
    assert wire.cache == wire.life.caches[-1]
    assert wire.counts.snapshots_asked == 0 or wire.counts.holes > 0
    if ring == 1000:
        assert wire.counts.holes == 0
        assert "lost" not in wire.ended.values()
