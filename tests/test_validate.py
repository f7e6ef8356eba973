"""The last gate before an engine: every bad value is named, every good one passes."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from prebled.core.types import RunId
from prebled.errors import InvalidValue, PromptTooLong
from prebled.messages import Capacity, Sampling, Submit
from prebled.worker.validate import check_submit

CAPACITY = Capacity("m", "sglang", "cpu", 64, 65536, 16000, 16384, 2048, 64)


def submit(tokens: bytes | list[int], **sampling: object) -> Submit:
    prompt = tokens if isinstance(tokens, bytes) else np.asarray(tokens, dtype="<u4").tobytes()
    return Submit(RunId("r"), prompt, Sampling(**{"max_tokens": 1, **sampling}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "good",
    [
        submit([0]),
        submit([2047] * 16000, max_tokens=384),
        submit([1], temperature=0.0, top_p=1e-3, top_k=1, min_p=1.0, seed=-(2**63), stop_token_ids=(0, 2047)),
        submit([1], temperature=100.0, top_k=-1, min_p=0.0, seed=2**63 - 1),
    ],
)
def test_good_values_pass(good: Submit) -> None:
    assert check_submit(good, CAPACITY) is None


@pytest.mark.parametrize(
    ("bad", "named", "param"),
    [
        (submit(b""), "empty", "prompt"),
        (submit(b"\1\0\0\0\2"), "5 bytes", "prompt"),
        (submit([5, 2048, 7]), "2048", "prompt"),
        (submit([2**32 - 1]), "4294967295", "prompt"),
        (submit([1], max_tokens=0), "not 0", "max_tokens"),
        (submit([1], max_tokens=-5), "not -5", "max_tokens"),
        (submit([1], temperature=-0.1), "-0.1", "temperature"),
        (submit([1], temperature=math.nan), "nan", "temperature"),
        (submit([1], temperature=math.inf), "inf", "temperature"),
        (submit([1], top_p=0.0), "0.0", "top_p"),
        (submit([1], top_p=7.0), "7.0", "top_p"),
        (submit([1], top_p=math.nan), "nan", "top_p"),
        (submit([1], top_k=0), "not 0", "top_k"),
        (submit([1], top_k=-2), "not -2", "top_k"),
        (submit([1], min_p=1.5), "1.5", "min_p"),
        (submit([1], min_p=math.nan), "nan", "min_p"),
        (submit([1], seed=2**63), str(2**63), "seed"),
        (submit([1], stop_token_ids=(3, 2048)), "2048", "stop_token_ids"),
        (submit([1], stop_token_ids=(-1,)), "-1", "stop_token_ids"),
        (submit([1], stop_token_ids=tuple(range(1025))), "1025", "stop_token_ids"),
    ],
)
def test_bad_values_are_named(bad: Submit, named: str, param: str) -> None:
    error = check_submit(bad, CAPACITY)
    assert isinstance(error, InvalidValue)
    assert named in error.message
    assert error.param == param


def test_what_does_not_fit_is_too_long() -> None:
    for bad in (submit([1] * 16001), submit([1] * 16000, max_tokens=385), submit([1], max_tokens=2**40)):
        assert isinstance(check_submit(bad, CAPACITY), PromptTooLong)


def test_a_long_prompt_takes_microseconds() -> None:
    long = submit([7] * 8192, max_tokens=16)
    check_submit(long, CAPACITY)
    best = min(_seconds(long) for _ in range(50))
    assert best < 500e-6


def _seconds(one: Submit) -> float:
    began = time.perf_counter()
    check_submit(one, CAPACITY)
    return time.perf_counter() - began
