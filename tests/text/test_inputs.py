"""Values of requests: what would harm an engine or means nothing is refused, by field and value."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from prebled.daemon.gateway import GenerateInput
from prebled.daemon.inputs import check_input, request_id_or_new, shown
from prebled.errors import InvalidValue
from prebled.messages import ChatMessage

NAN, INFINITE = float("nan"), float("inf")


def tokens(*ids: int) -> bytes:
    return array("I", ids).tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x"},
        {"prompt_tokens": tokens(0, 99)},
        {"messages": tuple(ChatMessage(r, "") for r in ("system", "developer", "user", "assistant", "tool"))},
        {"prompt": "x", "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "max_tokens": 1},
        {"prompt": "x", "temperature": 2.0, "top_p": 1e-9, "top_k": 2**30, "min_p": 1.0, "max_tokens": 2**31 - 1},
        {"prompt": "x", "seed": -(2**63), "stop": ("a",) * 16, "cache_salt": "s" * 256},
        {"prompt": "x", "seed": 2**63 - 1, "stop": ("a" * 1024,)},
    ],
)
def test_good_values_pass(fields: dict[str, Any]) -> None:
    check_input(GenerateInput(**fields), vocab_size=100)


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({}, "prompt", "exactly one"),
        ({"prompt": "x", "prompt_tokens": tokens(1)}, "prompt", "exactly one"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt_tokens": b""}, "prompt", "empty"),
        ({"prompt_tokens": b"\1\0\0"}, "prompt", "3 bytes"),
        ({"prompt_tokens": tokens(1, 100, 7)}, "prompt", "100"),
        ({"prompt_tokens": tokens(2**32 - 1)}, "prompt", "4294967295"),
        ({"messages": ()}, "messages", "empty"),
        ({"messages": (ChatMessage("user", ""), ChatMessage("boss", "x"))}, "messages[1].role", "'boss'"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"max_tokens": -5}, "max_tokens", "-5"),
        ({"max_tokens": 2**31}, "max_tokens", "2147483648"),
        ({"temperature": -0.1}, "temperature", "-0.1"),
        ({"temperature": 2.1}, "temperature", "2.1"),
        ({"temperature": NAN}, "temperature", "nan"),
        ({"temperature": INFINITE}, "temperature", "inf"),
        ({"top_p": 0.0}, "top_p", "0.0"),
        ({"top_p": 7.0}, "top_p", "7.0"),
        ({"top_p": NAN}, "top_p", "nan"),
        ({"top_k": 0}, "top_k", "0"),
        ({"top_k": -2}, "top_k", "-2"),
        ({"top_k": 2**31}, "top_k", "2147483648"),
        ({"min_p": 1.5}, "min_p", "1.5"),
        ({"min_p": NAN}, "min_p", "nan"),
        ({"seed": 2**63}, "seed", "9223372036854775808"),
        ({"seed": -(2**63) - 1}, "seed", "-9223372036854775809"),
        ({"stop": ("a",) * 17}, "stop", "17"),
        ({"stop": ("ok", "")}, "stop", "''"),
        ({"stop": ("a" * 1025,)}, "stop", "1024"),
        ({"cache_salt": "s" * 257}, "cache_salt", "256"),
        ({"cache_salt": "\ud800"}, "cache_salt", "Unicode"),
    ],
)
def test_bad_values_are_named(fields: dict[str, Any], param: str, named: str) -> None:
    has_prompt = not fields or {"prompt", "prompt_tokens", "messages"} & set(fields)
    with pytest.raises(InvalidValue) as caught:
        check_input(GenerateInput(**(fields if has_prompt else {"prompt": "x", **fields})), vocab_size=100)
    assert caught.value.param == param
    assert named in caught.value.message
    assert len(caught.value.message) < 300


def test_request_ids_are_kept_only_where_a_header_can_carry_them() -> None:
    assert request_id_or_new("abc-123_x.y:z/~") == "abc-123_x.y:z/~"
    for bad in ("", "a b", "x" * 129, "caf\u00e9", "a\r\nset-cookie: b", "tab\t"):
        fresh = request_id_or_new(bad)
        assert fresh.startswith("req-")
        assert fresh != request_id_or_new(bad)


def test_long_values_are_cut_in_messages() -> None:
    assert shown("short") == "'short'"
    assert len(shown("x" * 10**6)) < 100
    assert len(shown(list(range(10**5)))) < 100
