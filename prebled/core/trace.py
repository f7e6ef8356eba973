"""Traces of the global scheduler: what happened when, and what it decided. One JSON object a line.

Replaying the events must give the same decisions; a trace kept in the tests shows a changed policy as a changed file.
It encodes and decodes lines; reading and writing files is for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import msgspec

from prebled.core.decisions import AnyDecision, Placed, Placement
from prebled.core.events import AnyEvent


class TraceStep(msgspec.Struct, frozen=True):
    """One call of `GlobalScheduler.handle`. `now` in seconds."""

    now: float
    event: AnyEvent
    decisions: list[AnyDecision]


class Handler(Protocol):
    """What is traced: the global scheduler."""

    def handle(self, event: AnyEvent, now: float) -> list[AnyDecision]:
        """See `GlobalScheduler.handle`."""


def _written_out(value: object) -> Placement:
    if isinstance(value, Placed):
        return value.written_out()
    raise TypeError(f"{type(value).__name__} has no form in a trace")


def _read_back(wanted: type, value: Any) -> Placed:
    if wanted is not Placed:
        raise TypeError(f"{wanted.__name__} has no form in a trace")
    return Placed(**msgspec.structs.asdict(msgspec.convert(value, Placement)))


_ENCODER = msgspec.json.Encoder(enc_hook=_written_out)
_DECODER = msgspec.json.Decoder(TraceStep, dec_hook=_read_back)


def encode_step(step: TraceStep) -> bytes:
    """One line, without its end."""
    return _ENCODER.encode(step)


def decode_step(line: bytes) -> TraceStep:
    """The step of one line. Raises msgspec.DecodeError where it is none."""
    return _DECODER.decode(line)


def record(scheduler: Handler, script: Iterable[tuple[float, AnyEvent]]) -> Iterator[TraceStep]:
    """Feed events at their times and give each with what was decided."""
    for now, event in script:
        yield TraceStep(now, event, scheduler.handle(event, now))
