"""SGLang's messages, as the worker writes and reads them without importing SGLang.

SGLang encodes a message as a msgpack array of its tag and fields; a child tells the order of the fields and a filled-in
template of each message (`Layout`), so nothing here depends on their position. Arrays of numbers travel as a msgpack
extension: a header, which the templates show, and the raw numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prebled.core.types import RunId
from prebled.messages import Sampling, Submit
from prebled.worker.sglang_child import ChildFailed, ChildReady, Layout

_GREEDY_BELOW = 1e-6  # temperatures below this are greedy, as in SGLang's own SamplingParams
_CHILD = msgspec.msgpack.Decoder(ChildReady | ChildFailed)


class Output(NamedTuple):
    """What one message of a scheduler says of one run. `reason` is SGLang's finish reason, None while the run goes on.
    `cached_tokens` is None where the message does not say."""

    run_id: RunId
    tokens: tuple[int, ...]
    reason: dict[str, Any] | None
    cached_tokens: int | None


class LoadSnapshot(msgspec.Struct, frozen=True):
    """The part of SGLang's load snapshot (`sglang.srt.managers.load_snapshot`) that a worker reports."""

    num_waiting_reqs: int = 0
    num_used_tokens: int = 0
    max_running_requests: int = 0


def decode_child(frame: bytes) -> ChildReady | ChildFailed | None:
    """The frame as a message of our own child, None if it is one of SGLang's."""
    try:
        message: ChildReady | ChildFailed = _CHILD.decode(frame)
    except msgspec.MsgspecError:
        return None
    return message


class SchedulerWire:
    """Encodes requests to a scheduler and decodes its outputs."""

    def __init__(self, layouts: Mapping[str, Layout]) -> None:
        self._batch = _Template(layouts["BatchTokenizedGenerateReqInput"])
        self._generate = _Template(layouts["TokenizedGenerateReqInput"])
        self._sampling = _Template(layouts["SamplingParams"])
        self._abort = _Template(layouts["AbortReq"])
        self._abort_columns = self._abort.position("rid"), self._abort.position("finished_reason")
        array_of_none: msgspec.msgpack.Ext = self._generate.value("input_ids")
        self._array_code = array_of_none.code
        self._array_header = bytes(array_of_none.data)
        fields = layouts["BatchTokenIDOutput"].fields
        self._columns = tuple(
            1 + fields.index(name) for name in ("rids", "output_ids", "finished_reasons", "cached_tokens")
        )

    def encode_submits(self, submits: Sequence[Submit]) -> bytes:
        return msgspec.msgpack.encode(self._batch.fill(batch=[self._request(submit) for submit in submits]))

    def encode_abort(self, run_id: RunId) -> bytes:
        return msgspec.msgpack.encode(self._abort.fill(rid=_rid(run_id)))

    def decode(self, frame: bytes) -> Iterator[Output]:
        """The outputs in a frame: one row per run that an engine step touched, or one abort of a run that was not
        running. Nothing for messages of other kinds."""
        message = msgspec.msgpack.decode(frame)
        match message[0]:
            case "BatchTokenIDOutput":
                rids, output_ids, reasons, cached = (message[column] for column in self._columns)
                for rid, ids, reason, cached_tokens in zip(rids, output_ids, reasons, cached, strict=True):
                    yield Output(_run_id(rid), self._numbers(ids), reason, cached_tokens)
            case "AbortReq":
                rid, reason = (message[column] for column in self._abort_columns)
                yield Output(_run_id(rid), (), reason or {"type": "abort"}, None)

    def _request(self, submit: Submit) -> list[Any]:
        ids = np.frombuffer(submit.tokens, dtype="<u4").astype("<i8").tobytes()
        return self._generate.fill(
            rid=_rid(submit.run_id),
            input_ids=msgspec.msgpack.Ext(self._array_code, self._array_header + ids),
            sampling_params=self._sampling.fill(**_sampling_fields(submit.sampling)),
            cache_salt=submit.cache_salt or None,
        )

    def _numbers(self, ids: msgspec.msgpack.Ext | list[int]) -> tuple[int, ...]:
        if isinstance(ids, list):
            return tuple(ids)
        data = bytes(ids.data)
        if ids.code != self._array_code or not data.startswith(self._array_header):
            raise ValueError(f"SGLang sent token ids in an unknown form: {ids!r}")
        return tuple(array("q", data[len(self._array_header) :]))


class _Template:
    """A message with its defaults, decoded; `fill` gives a copy with some fields set."""

    def __init__(self, layout: Layout) -> None:
        self._values: list[Any] = msgspec.msgpack.decode(layout.template)
        tags = len(self._values) - len(layout.fields)
        self._positions = {name: tags + index for index, name in enumerate(layout.fields)}

    def position(self, field: str) -> int:
        return self._positions[field]

    def value(self, field: str) -> Any:
        return self._values[self._positions[field]]

    def fill(self, **fields: Any) -> list[Any]:
        values = self._values.copy()
        for name, value in fields.items():
            values[self._positions[name]] = value
        return values


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Only what differs from SGLang's defaults for `top_k`: its "all" is a large number, which the template holds."""
    fields: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "ignore_eos": sampling.ignore_eos,
        "sampling_seed": sampling.seed,
    }
    if sampling.temperature < _GREEDY_BELOW:
        fields |= {"temperature": 1.0, "top_k": 1}
    elif sampling.top_k > 0:
        fields["top_k"] = sampling.top_k
    return fields


def _rid(run_id: RunId) -> str:
    """SGLang aborts every request whose id starts with the one it is given; with its length in front, no id is the
    beginning of another."""
    return f"{len(run_id)}:{run_id}"


def _run_id(rid: str) -> RunId:
    return RunId(rid.partition(":")[2])
