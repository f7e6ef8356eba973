"""Where `prebled bench serve` sends to: a daemon's native socket, or any server with OpenAI's completions API.

Both send token ids, greedy, past every end of sequence, so that outputs have the length that was asked for. Being told
to come back later is obeyed; any other error ends the request.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Protocol

import msgspec

from prebled.client import AsyncClient
from prebled.errors import PrebledError, Saturated, SettingsError, Unavailable


class Served(msgspec.Struct, frozen=True):
    """One request as the client saw it; times in seconds. `error` is the code of what went wrong, if something did.
    `request_id`: of a daemon's native socket, to ask it why."""

    ttft_s: float
    e2e_s: float
    gaps_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    request_id: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for outputs of one token."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class Target(Protocol):
    """Takes requests."""

    async def serve(self, tokens: array[int], max_tokens: int) -> Served:
        """Send one prompt and time its answer. Does not raise: an error is an outcome."""


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Target]:
    """`http://HOST:PORT[/v1]`, or `unix:PATH`, `tcp:HOST:PORT`, "" of a daemon. Raises SettingsError, Unavailable."""
    if url.startswith(("http://", "https://")):
        async with _http(url) as http_target:
            yield http_target
    else:
        async with AsyncClient(url) as client:
            yield _Native(client)


class _Native:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def serve(self, tokens: array[int], max_tokens: int) -> Served:
        start = time.perf_counter()
        while True:
            try:
                stream = await self._client.generate(tokens, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
                marks = [time.perf_counter() async for chunk in stream if chunk.tokens]
            except Saturated as refusal:
                await asyncio.sleep(refusal.retry_after_s or 1.0)
                continue
            except PrebledError as error:
                return Served(0.0, time.perf_counter() - start, error=error.code)
            usage = stream.usage
            if usage is None:
                return _served(start, marks, 0, 0, 0)
            served = _served(start, marks, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            return msgspec.structs.replace(served, request_id=stream.request_id)


@asynccontextmanager
async def _http(url: str) -> AsyncIterator[Target]:
    try:
        import httpx
    except ImportError:
        raise SettingsError(f"{url}: driving a server over HTTP needs httpx (pip install 'prebled[bench]')") from None
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base, timeout=None, limits=limits, trust_env=False) as client:
        try:
            models = (await client.get("/models")).raise_for_status().json()["data"]
            yield _Http(client, str(models[0]["id"]))
        except httpx.HTTPError as error:
            raise Unavailable(f"{url}: {error or type(error).__name__}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SettingsError(f"{url}: /v1/models names no model ({error!r})") from error


class _Http:
    def __init__(self, client: Any, model: str) -> None:
        self._client = client
        self._model = model

    async def serve(self, tokens: array[int], max_tokens: int) -> Served:
        import httpx

        body = {
            "model": self._model,
            "prompt": tokens.tolist(),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        while True:
            marks: list[float] = []
            usage: dict[str, Any] = {}
            try:
                async with self._client.stream("POST", "/completions", json=body) as answer:
                    if answer.status_code == 429:
                        await asyncio.sleep(float(answer.headers.get("retry-after", 1.0)))
                        continue
                    if answer.status_code != 200:
                        return Served(0.0, time.perf_counter() - start, error=f"http_{answer.status_code}")
                    async for line in answer.aiter_lines():
                        event = _event(line)
                        if event.get("error"):
                            return Served(0.0, time.perf_counter() - start, error=str(event["error"].get("code")))
                        if event.get("choices"):
                            marks.append(time.perf_counter())
                        usage = event.get("usage") or usage
            except (httpx.HTTPError, msgspec.DecodeError) as error:
                return Served(0.0, time.perf_counter() - start, error=type(error).__name__)
            details = usage.get("prompt_tokens_details") or {}
            prompt_tokens, output_tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
            return _served(start, marks, prompt_tokens, output_tokens, details.get("cached_tokens", 0))


def _event(line: str) -> dict[str, Any]:
    """The object of one line of server-sent events; empty for other lines."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return {}
    event: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    return event


def _served(start: float, marks: list[float], prompt_tokens: int, output_tokens: int, cached_tokens: int) -> Served:
    if not marks or not output_tokens:
        return Served(0.0, time.perf_counter() - start, error="empty_answer")
    gaps = tuple(b - a for a, b in pairwise(marks))
    return Served(marks[0] - start, marks[-1] - start, gaps, prompt_tokens, output_tokens, cached_tokens)
