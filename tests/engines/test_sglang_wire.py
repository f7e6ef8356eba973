"""SGLang's messages without SGLang: fields are found by name, whatever their order."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import pytest
from engine_driver import submit

from prebled.core.types import RunId
from prebled.worker.sglang_child import Layout
from prebled.worker.sglang_wire import SchedulerWire

HEADER = b"\0\0\0\2\xa1q"  # what SGLang puts before the numbers of an array


def layout(tag: str | None, **fields: Any) -> Layout:
    values = [*([tag] if tag else []), *fields.values()]
    return Layout(tuple(fields), msgspec.msgpack.encode(values))


def numbers(*values: int) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(1, HEADER + array("q", values).tobytes())


SAMPLING: dict[str, Any] = {
    "ignore_eos": False,
    "top_k": 1 << 30,
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "max_new_tokens": 128,
    "stop_token_ids": None,
    "sampling_seed": None,
    "stop_strs": [],
}
WIRE = SchedulerWire(
    {
        "SamplingParams": layout(None, **SAMPLING),
        "TokenizedGenerateReqInput": layout(
            "Generate", stream=True, cache_salt=None, sampling_params=None, input_ids=numbers(), rid=None
        ),
        "BatchTokenizedGenerateReqInput": layout("Batch", rids=None, batch=[]),
        "AbortReq": layout("AbortReq", abort_all=False, finished_reason=None, rid=""),
        "BatchTokenIDOutput": Layout(("cached_tokens", "rids", "unknown", "output_ids", "finished_reasons")),
    }
)


def sampling_of(request: list[Any]) -> dict[str, Any]:
    return dict(zip(SAMPLING, request[3], strict=True))


def test_requests_are_filled_in_by_name() -> None:
    runs = [
        submit("r1", [7, 300], 5, cache_salt="s", stop_token_ids=(4, 2), seed=9),
        submit("r12", [1], 6, temperature=0.5, top_k=40, top_p=0.9, ignore_eos=False),
    ]
    tag, _, (first, second) = msgspec.msgpack.decode(WIRE.encode_submits(runs))
    assert tag == "Batch"
    assert (first[0], first[1], first[2], first[4], first[5]) == ("Generate", True, "s", numbers(7, 300), "2:r1")
    assert (second[2], second[5]) == (None, "3:r12")
    greedy, sampled = sampling_of(first), sampling_of(second)
    assert (greedy["temperature"], greedy["top_k"], greedy["ignore_eos"]) == (1.0, 1, True)
    assert (greedy["max_new_tokens"], greedy["stop_token_ids"], greedy["sampling_seed"]) == (5, [4, 2], 9)
    assert (sampled["temperature"], sampled["top_k"], sampled["top_p"]) == (0.5, 40, 0.9)
    assert sampled["stop_strs"] == []
    assert sampling_of(msgspec.msgpack.decode(WIRE.encode_submits([submit("r", [1], temperature=1.0)]))[2][0])[
        "top_k"
    ] == (1 << 30)


def test_outputs_are_read_by_name() -> None:
    frame = msgspec.msgpack.encode(
        ["BatchTokenIDOutput", [64, 0], ["2:r1", "3:r12"], b"?", [numbers(5, 2**31), []], [None, {"type": "length"}]]
    )
    assert [tuple(output) for output in WIRE.decode(frame)] == [
        ("r1", (5, 2**31), None, 64),
        ("r12", (), {"type": "length"}, 0),
    ]


def test_aborts_are_written_and_read() -> None:
    frame = WIRE.encode_abort(RunId("a:b"))
    assert msgspec.msgpack.decode(frame)[3] == "3:a:b"
    assert [tuple(output) for output in WIRE.decode(frame)] == [("a:b", (), {"type": "abort"}, None)]


def test_other_messages_say_nothing_and_unknown_arrays_are_refused() -> None:
    assert list(WIRE.decode(msgspec.msgpack.encode(["HealthCheckOutput", 1]))) == []
    strange = msgspec.msgpack.Ext(1, b"\0\0\0\2\xa1i" + b"\1\0\0\0")
    frame = msgspec.msgpack.encode(["BatchTokenIDOutput", [0], ["1:r"], None, [strange], [None]])
    with pytest.raises(ValueError, match="unknown form"):
        list(WIRE.decode(frame))
