"""The fields of OpenAI's requests, and what is made of those that prebled does not support yet.

Each endpoint's struct names every field of its request; one that is not there is unknown and refused. Those that are
not supported must be absent or at a value that asks for nothing (`NEUTRAL`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

Json: TypeAlias = dict[str, Any]


class BaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints take."""

    # With an effect; the last four are extensions of OpenAI's API, as SGLang and vLLM have them.
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: Json | None = None
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
    # Metadata.
    user: str | None = None
    metadata: Json | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # Not supported yet.
    n: int | None = None
    logit_bias: Json | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class ChatRequest(BaseRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatTurn]
    max_completion_tokens: int | None = None
    parallel_tool_calls: bool | None = None  # without tools it says nothing
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Json | None = None
    tools: list[Any] | None = None
    tool_choice: str | Json | None = None
    functions: list[Any] | None = None
    function_call: str | Json | None = None
    modalities: list[str] | None = None
    audio: Json | None = None
    prediction: Json | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: Json | None = None


class ChatTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `messages`; the fields after `content` are what clients echo of earlier answers."""

    role: str
    content: str | list[Json] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Json | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: Json | None = None


class CompletionRequest(BaseRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "top_logprobs": (),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
}
"""Fields that are not supported yet, and the values of each that ask for nothing. `logprobs` is apart: in chats `false`
asks for nothing, in completions `0` asks for something."""

NEUTRAL_IN_TURNS: dict[str, tuple[object, ...]] = {
    "name": (),
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
}
