"""Short names for what a worker's stream is made of."""

from __future__ import annotations

from prebled.core.types import Epoch, RunId
from prebled.daemon.kv_stream import KvHeld, KvStream
from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import (
    Chunk,
    Done,
    Frame,
    KvChange,
    KvChanged,
    KvSnapshot,
    KvStored,
    Replayed,
    Tokens,
    encode,
)

EPOCH = Epoch(7)
A, B = RunId("a"), RunId("b")


def chunk(run_id: RunId, *tokens: int) -> Chunk:
    return Chunk(run_id, tokens)


def frame(seq: int, *chunks: Chunk, epoch: Epoch = EPOCH) -> Tokens:
    return Tokens(epoch, seq, chunks)


def done(run_id: RunId, last_seq: int, epoch: Epoch = EPOCH) -> Done:
    return Done(epoch, run_id, last_seq, "stop", 1, 0, 1)


def replayed(first_seq: int, *frames: Frame) -> Replayed:
    return Replayed(EPOCH, first_seq, tuple(encode(f) for f in frames))


def kv(seq: int, *changes: KvChange, epoch: Epoch = EPOCH) -> KvChanged:
    return KvChanged(epoch, seq, changes)


def snapshot(last_seq: int, *runs: KvStored, part: int = 0, is_last: bool = True) -> KvSnapshot:
    return KvSnapshot(EPOCH, last_seq, runs, part, is_last)


def held(*runs: KvStored) -> KvHeld:
    return KvHeld(runs)


def opened_kv(counts: StreamCounts, next_seq: int = 1) -> KvStream:
    """Of a worker whose cache is empty, and whose frames begin here."""
    stream = KvStream(patience_s=5, counts=counts)
    stream.take_snapshot(snapshot(next_seq - 1), 0)
    assert stream.open(next_seq, 0) == [held()]
    return stream
