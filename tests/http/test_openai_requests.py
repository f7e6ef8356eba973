"""Reading OpenAI's requests: what they mean, and that nothing in them is silently ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prebled.daemon.gateway import GenerateInput
from prebled.daemon.openai import Call, read_chat, read_completion
from prebled.daemon.openai_fields import ChatRequest, CompletionRequest
from prebled.errors import InvalidValue, RequestError, Unsupported
from prebled.messages import ChatMessage

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Call:
    return read_chat(json.dumps({"messages": HI} | fields).encode(), "my-id")


def completion(**fields: Any) -> Call:
    return read_completion(json.dumps({"prompt": "hi"} | fields).encode(), "my-id", 16)


def test_a_bare_chat_and_completion() -> None:
    message = ChatMessage("user", "hi")
    assert chat() == Call(GenerateInput(messages=(message,), request_id="my-id"), stream=False, include_usage=False)
    expected = GenerateInput(prompt="hi", max_tokens=16, request_id="my-id")
    assert completion() == Call(expected, stream=False, include_usage=False)


def test_all_fields_with_an_effect() -> None:
    fields = {
        "model": "m",
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.1,
        "stop": ["a", "b"],
        "seed": 7,
        "ignore_eos": True,
        "cache_salt": "tenant",
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    for call in (chat(**fields), completion(**fields)):
        made = call.input
        assert (made.model, made.max_tokens, made.temperature, made.top_p) == ("m", 5, 0.0, 0.5)
        assert (made.top_k, made.min_p, made.stop, made.seed) == (40, 0.1, ("a", "b"), 7)
        assert (made.ignore_eos, made.cache_salt, call.stream, call.include_usage) == (True, "tenant", True, True)
    assert chat(stop="x").input.stop == ("x",)


def test_null_means_absent_everywhere() -> None:
    names = [*ChatRequest.__struct_fields__]
    assert chat(**{name: None for name in names if name != "messages"}) == chat()
    names = [*CompletionRequest.__struct_fields__]
    assert completion(**{name: None for name in names if name != "prompt"}) == completion()


def test_metadata_and_neutral_values_are_accepted() -> None:
    common = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "n": 1,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
    }
    assert completion(**common, best_of=1, echo=False, suffix="") == completion()
    neutral = {
        "parallel_tool_calls": True,
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "functions": [],
        "function_call": "none",
        "modalities": ["text"],
    }
    assert chat(**common, **neutral) == chat()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("tool_choice", {"type": "function"}),
        ("functions", [{}]),
        ("function_call", "auto"),
        ("n", 2),
        ("n", 0),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("logit_bias", {"50256": -100}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content"}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("stream_options", {"chunk_size": 3}),
        ("stream_options", {"include_obfuscation": True}),
        ("repetition_penalty", 1.1),
        ("no_such_field", 1),
        ("no_such_field", None),
    ],
)
def test_what_a_chat_cannot_have_is_named(name: str, value: object) -> None:
    with pytest.raises(Unsupported) as caught:
        chat(**{name: value}, stream=True)
    assert caught.value.param is not None
    assert caught.value.param.startswith(name)
    assert name in caught.value.message
    assert (caught.value.code, caught.value.status) == ("unsupported_parameter", 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs", 0),
        ("logprobs", 5),
        ("best_of", 2),
        ("echo", True),
        ("suffix", "end"),
        ("n", 3),
        ("max_completion_tokens", 5),
        ("messages", HI),
        ("prompt", ["a", "b"]),
        ("prompt", [[1, 2], [3]]),
    ],
)
def test_what_a_completion_cannot_have_is_named(name: str, value: object) -> None:
    with pytest.raises(Unsupported) as caught:
        completion(**{name: value})
    assert caught.value.param == name
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"max_tokens": "many"}, "max_tokens", "'many'"),
        ({"max_tokens": 1.5}, "max_tokens", "1.5"),
        ({"max_tokens": True}, "max_tokens", "True"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"stream": "yes"}, "stream", "'yes'"),
        ({"stop": ["a", 5]}, "stop[1]", "5"),
        ({"seed": [1]}, "seed", "[1]"),
        ({"user": 5}, "user", "5"),
        ({"n": "2"}, "n", "'2'"),
        ({"model": 3}, "model", "3"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options", "1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
    ],
)
def test_wrong_types_are_named(fields: dict[str, Any], param: str, named: str) -> None:
    for read in (chat, completion):
        with pytest.raises(InvalidValue) as caught:
            read(**fields)
        assert caught.value.param == param
        assert named in caught.value.message


def test_completion_tokens_under_either_name() -> None:
    assert chat(max_tokens=5).input.max_tokens == 5
    assert chat(max_completion_tokens=5).input.max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).input.max_tokens == 5
    with pytest.raises(InvalidValue, match="max_tokens 6 and max_completion_tokens 5 differ"):
        chat(max_completion_tokens=5, max_tokens=6)


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [
        ("text", "text", None),
        (["text"], "text", None),
        ([1, 2, 513], None, bytes([1, 0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0])),
        ([[7]], None, bytes([7, 0, 0, 0])),
        ([2**32 - 1], None, b"\xff\xff\xff\xff"),
        ([], None, b""),
        ([[]], None, b""),
    ],
)
def test_prompt_forms(prompt: object, text: str | None, tokens: bytes | None) -> None:
    made = completion(prompt=prompt).input
    assert (made.prompt, made.prompt_tokens) == (text, tokens)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [([1, -2], "-2"), ([2**32], str(2**32)), ([1, "x"], "'x'"), ([1, [2]], "[2]"), ([5, 1.5], "1.5")],
)
def test_bad_token_ids_are_named(prompt: object, named: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        completion(prompt=prompt)
    assert str(caught.value.param).startswith("prompt")
    assert named in caught.value.message


def test_message_content_as_text_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert chat(messages=[{"role": "user", "content": parts}]).input.messages == (ChatMessage("user", "one two"),)


def test_echoed_answers_are_accepted() -> None:
    echoed = {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
        "function_call": None,
    }
    assert chat(messages=[*HI, echoed]).input.messages == (ChatMessage("user", "hi"), ChatMessage("assistant", "hello"))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}, "messages[1].content[0].cache"),
        ({"role": "user", "content": "x", "name": "bob"}, "messages[1].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[1].tool_calls"),
        ({"role": "tool", "content": "x", "tool_call_id": "c1"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "colour": "red"}, "messages[1].colour"),
        ("hello", "messages[1]"),
    ],
)
def test_bad_messages_are_named(message: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(messages=[*HI, message])
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"messages": ', "byte 13"),
        (b'{"messages": [}', "byte 14"),
        (b"", "byte 0"),
        (b'{"user": "caf\xe9"}', "byte 13"),
        (b"hello", "byte 0"),
        (b"[1, 2]", "object"),
        (b'{"metadata": ' + b'{"a":' * 100_000, "deeply"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "seed: Integer value out of range"),
        (b'{"seed": "x", "metadata": ' + b'{"a":' * 100_000, "seed: Expected"),
    ],
)
def test_malformed_json_is_located(body: bytes, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat(body, "")
    assert named in caught.value.message
    assert caught.value.status == 400


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidValue, match="prompt: is missing"):
        read_completion(b"{}", "", 16)
    with pytest.raises(InvalidValue, match="messages: is missing"):
        read_chat(b"{}", "")
