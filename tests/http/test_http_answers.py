"""What HTTP clients get: OpenAI's shapes, truthful statuses, and an `x-request-id` on every answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from scripted_gateway import USAGE, ScriptedGateway, serving, tokens_of

from prebled.daemon.gateway import GenerateInput
from prebled.daemon.http_server import HttpServer
from prebled.daemon.streams import RequestStream
from prebled.errors import Draining, PrebledError, PromptTooLong, Saturated, Unavailable, WorkerFailed

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}
STREAMED_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
async def served() -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedGateway]]:
    async with (
        serving() as (server, gateway),
        httpx.AsyncClient(base_url=f"http://{server.addresses[0]}", timeout=10) as client,
    ):
        yield client, gateway


Served = tuple[httpx.AsyncClient, ScriptedGateway]


def events_of(text: str) -> list[Any]:
    """The data of all events, each an object, but for the end mark."""
    assert text.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    return [event if event == "[DONE]" else json.loads(event) for event in data]


async def test_a_chat_as_one_object(served: Served) -> None:
    client, _ = served
    answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": answer.headers["x-request-id"],
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello!"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_a_completion_as_one_object(served: Served) -> None:
    client, _ = served
    answer = (await client.post("/v1/completions", json=TEXT)).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_a_chat_as_events(served: Served) -> None:
    client, _ = served
    answer = await client.post("/v1/chat/completions", json=CHAT | STREAMED_USAGE)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *chunks, usage, done = events_of(answer.text)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in (*chunks, usage)} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in (*chunks, usage)} == {answer.headers["x-request-id"]}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert not any("role" in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_completion_as_events_without_usage(served: Served) -> None:
    client, _ = served
    *chunks, done = events_of((await client.post("/v1/completions", json=TEXT | {"stream": True})).text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello!"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in chunk for chunk in chunks)


async def test_each_token_is_sent_when_it_comes(served: Served) -> None:
    client, gateway = served
    step = asyncio.Event()

    async def one_by_one(stream: RequestStream) -> None:
        for letter in "ab\U0001f600\n":
            stream.push(tokens_of(letter))
            await step.wait()
            step.clear()
        stream.finish("length", USAGE)

    gateway.script = one_by_one
    async with client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}) as answer:
        lines = (line async for line in answer.aiter_lines() if line)
        for letter in "ab\U0001f600\n":  # each must be read before the next is made
            assert json.loads((await anext(lines)).removeprefix("data: "))["choices"][0]["text"] == letter
            step.set()
        assert json.loads((await anext(lines)).removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


async def test_a_stop_string_is_cut_off(served: Served) -> None:
    client, gateway = served

    async def overlong(stream: RequestStream) -> None:
        assert stream.push(tokens_of("text ENDED"))
        stream.finish("length", USAGE)

    gateway.script = overlong
    answer = (await client.post("/v1/completions", json=TEXT | {"stop": "END"})).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("text ", "stop")
    assert answer["usage"]["completion_tokens"] == 8


async def test_the_request_reaches_the_gateway(served: Served) -> None:
    client, gateway = served
    await client.post("/v1/completions", json=TEXT | {"top_k": 5}, headers={"x-request-id": "mine"})
    assert gateway.inputs == [GenerateInput(prompt="hi", max_tokens=16, top_k=5, request_id="mine")]


@pytest.mark.parametrize("stream", [False, True])
async def test_request_ids_are_echoed_or_made(served: Served, stream: bool) -> None:
    client, _ = served
    body = TEXT | {"stream": stream}
    mine = await client.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    ids = {(await client.post("/v1/completions", json=body)).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/ready", 405, "method_not_allowed"),
        ("GET", "/v1/models/org/other", 404, "model_not_found"),
    ],
)
async def test_wrong_paths_and_methods(served: Served, method: str, path: str, status: int, code: str) -> None:
    client, _ = served
    answer = await client.request(method, path, headers={"x-request-id": "mine"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"] == "mine"
    assert ("allow" in answer.headers) == (status == 405)


async def test_bad_requests_name_the_field(served: Served) -> None:
    client, gateway = served
    for path, body, status, param in (
        ("/v1/completions", TEXT | {"n": 2}, 400, "n"),
        ("/v1/completions", TEXT | {"temperature": 9}, 400, "temperature"),
        ("/v1/completions", TEXT | {"model": "gpt-7"}, 404, "model"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", CHAT | {"tools": [{}]}, 400, "tools"),
    ):
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert answer.headers["x-request-id"]
        assert "retry-after" not in answer.headers
    broken = await client.post("/v1/completions", content=b'{"prompt": ')
    assert broken.status_code == 400
    assert "byte 11" in broken.json()["error"]["message"]
    assert gateway.streams == []


@pytest.mark.parametrize(
    ("error", "status", "retry", "retry_ms"),
    [
        (Saturated("full", retry_after_s=0.05), 429, "1", "50"),
        (Saturated("full", retry_after_s=2.2), 429, "3", "2200"),
        (Unavailable("no worker is ready"), 503, "1", "1000"),
        (Draining("bye"), 503, "1", "1000"),
        (PromptTooLong("too long", param="prompt"), 400, None, None),
        (WorkerFailed("gone"), 502, None, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_have_their_status_and_say_when_to_come_again(
    served: Served, error: PrebledError, status: int, retry: str | None, retry_ms: str | None, stream: bool
) -> None:
    client, gateway = served

    async def refuse(request: GenerateInput) -> None:
        raise error

    gateway.before = refuse
    answer = await client.post("/v1/completions", json=TEXT | {"stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"] == {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    assert (answer.headers.get("retry-after"), answer.headers.get("retry-after-ms")) == (retry, retry_ms)
    assert answer.headers.get("x-should-retry") == (None if retry is None else "true")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_has_a_status(served: Served, stream: bool) -> None:
    client, gateway = served

    async def fail(made: RequestStream) -> None:
        raise WorkerFailed("the worker died")

    gateway.script = fail
    answer = await client.post("/v1/completions", json=TEXT | {"stream": stream}, headers={"x-request-id": "me"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "worker_failed")
    assert answer.headers["x-request-id"] == "me"


async def test_a_failure_midway_is_the_last_event(served: Served) -> None:
    client, gateway = served

    async def fail(stream: RequestStream) -> None:
        stream.push(tokens_of("Hel"))
        await asyncio.sleep(0)
        raise WorkerFailed("the worker died")

    gateway.script = fail
    first, last = events_of((await client.post("/v1/completions", json=TEXT | {"stream": True})).text)
    assert first["choices"][0]["text"] == "Hel"
    assert last == {
        "error": {"message": "the worker died", "type": "server_error", "param": None, "code": "worker_failed"}
    }
    whole = await client.post("/v1/completions", json=TEXT)
    assert whole.status_code == 502


async def test_an_aborted_request_is_an_error(served: Served) -> None:
    client, gateway = served

    async def abort(stream: RequestStream) -> None:
        stream.push(tokens_of("Hel"))
        await asyncio.sleep(0)
        stream.finish("abort", USAGE)

    gateway.script = abort
    assert (await client.post("/v1/completions", json=TEXT)).status_code == 502
    events = events_of((await client.post("/v1/completions", json=TEXT | {"stream": True})).text)
    assert events[-1]["error"]["code"] == "worker_failed"


@pytest.mark.parametrize("stream", [False, True])
async def test_our_own_bugs_are_a_500_that_tells_nothing(served: Served, stream: bool) -> None:
    client, gateway = served

    async def crash(request: GenerateInput) -> None:
        raise ZeroDivisionError("secret")

    gateway.before = crash
    answer = await client.post("/v1/completions", json=TEXT | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]


async def test_a_connection_serves_on_after_errors(served: Served) -> None:
    client, _ = served
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=client.base_url, limits=limits) as single:
        ports = set()
        for path, body in (("/nowhere", b"{}"), ("/v1/completions", b"{"), ("/v1/completions", b'{"prompt":"x"}')) * 3:
            async with single.stream("POST", path, content=body) as answer:
                await answer.aread()
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
        assert answer.status_code == 200
        assert len(ports) == 1


async def test_models(served: Served) -> None:
    client, _ = served
    model = {"id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "prebled", "max_model_len": 4096}
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await client.get("/v1/models/tiny")).json() == model


async def test_probes_tell_the_truth(served: Served) -> None:
    client, gateway = served

    async def statuses() -> list[int]:
        return [(await client.get(path)).status_code for path in ("/live", "/health", "/ready")]

    assert await statuses() == [200, 200, 200]
    gateway.draining = True
    assert await statuses() == [200, 200, 503]
    gateway.draining, gateway.worker_state = False, "loading"
    assert await statuses() == [200, 503, 503]
    answer = await client.get("/ready")
    assert "w0 loading (weights 40%)" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "1"


async def test_head_is_get_without_a_body(served: Served) -> None:
    client, _ = served
    for path in ("/live", "/ready", "/v1/models"):
        answer = await client.head(path)
        assert answer.status_code == 200
        assert answer.content == b""
        assert answer.headers["content-length"] == (await client.get(path)).headers["content-length"]
    assert (await client.head("/v1/completions")).status_code == 405
    assert (await client.get("/live")).status_code == 200


async def test_the_same_over_a_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "h.sock"
    async with serving(f"unix:{path}", "127.0.0.1:0") as (server, _):
        assert isinstance(server, HttpServer)
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://prebled") as client:
            answer = await client.post("/v1/chat/completions", json=CHAT | STREAMED_USAGE)
            assert events_of(answer.text)[-1] == "[DONE]"
