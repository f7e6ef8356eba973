"""Serves the two endpoints that generate: body in, request to the gateway, answer out, whole or as events.

The rule: when the client leaves, the request is given up at once, whether it still waits, streams or is collected; when
the client does not read, its connection is cut off once its stream has failed. Headers of a streamed answer go out with
its first update, so that what fails before has an HTTP status of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from prebled.daemon.gateway import Gateway, GenerationStream
from prebled.daemon.http_exchange import ClientGone, Exchange
from prebled.daemon.openai import Call
from prebled.daemon.sse import AnswerWriter
from prebled.errors import InternalError, PrebledError, SlowReader, WorkerFailed
from prebled.messages import FinishReason, Usage

log = structlog.get_logger()

GRACE_S = 1.0
"""How long a client whose request failed midway has to take the error, before its connection is cut off."""

Read = Callable[[bytes, str], Call]


class GenerationEndpoint:
    """`read` translates a body and the client's own request id; `writer` writes this endpoint's answers."""

    def __init__(self, gateway: Gateway, read: Read, writer: type[AnswerWriter], max_body_bytes: int) -> None:
        self._gateway = gateway
        self._read = read
        self._writer = writer
        self._max_body_bytes = max_body_bytes

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises PrebledError where nothing was answered yet, and ClientGone."""
        call = self._read(await exchange.read_body(self._max_body_bytes), exchange.given_id)
        problem: PrebledError | ClientGone | None = None
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(exchange.wait_gone())
                try:
                    await self._generate(exchange, call, group)
                except PrebledError as error:
                    problem = error
                finally:
                    watch.cancel()
        except* ClientGone:
            problem = ClientGone()
        if problem is not None:
            raise problem

    async def _generate(self, exchange: Exchange, call: Call, group: asyncio.TaskGroup) -> None:
        stream = await self._gateway.generate(call.input)
        try:
            exchange.request_id = stream.request_id
            model = self._gateway.model()
            writer = self._writer(stream.request_id, model.name, model.created, include_usage=call.include_usage)
            if call.stream:
                await self._stream(exchange, stream, writer, group)
            else:
                await exchange.reply(200, await _collect(stream, writer))
        finally:
            await stream.aclose()

    async def _stream(
        self, exchange: Exchange, stream: GenerationStream, writer: AnswerWriter, group: asyncio.TaskGroup
    ) -> None:
        watch = group.create_task(_cut_off_if_stuck(exchange, stream))
        try:
            await _send_all(exchange, stream, writer)
        except Exception as error:
            if not exchange.is_started:
                raise
            await exchange.send_events(writer.failure(_presentable(error, stream)), is_last=True)
        finally:
            watch.cancel()


async def _send_all(exchange: Exchange, stream: GenerationStream, writer: AnswerWriter) -> None:
    async for update in stream:
        if not exchange.is_started:
            await exchange.begin_events()
            events = writer.first(update.text)
        else:
            events = writer.delta(update.text) if update.text else b""
        if update.reason is not None:
            reason, usage = _well_ended(update.reason, update.usage)
            await exchange.send_events(events + writer.end(reason, usage), is_last=True)
        elif events:
            await exchange.send_events(events)


async def _collect(stream: GenerationStream, writer: AnswerWriter) -> bytes:
    texts: list[str] = []
    async for update in stream:
        texts.append(update.text)
        if update.reason is not None:
            reason, usage = _well_ended(update.reason, update.usage)
            return writer.whole("".join(texts), reason, usage)
    raise InternalError("the answer ended without a reason")


async def _cut_off_if_stuck(exchange: Exchange, stream: GenerationStream) -> None:
    """A failed stream's error cannot reach a client that does not read, so that sending it would wait for ever."""
    error = await stream.wait_failed()
    if not (exchange.is_sending and isinstance(error, SlowReader)):
        await asyncio.sleep(GRACE_S)
    exchange.abort()


def _well_ended(reason: FinishReason, usage: Usage | None) -> tuple[FinishReason, Usage]:
    if reason == "abort":
        raise WorkerFailed("the request was aborted")
    assert usage is not None  # the last update has both
    return reason, usage


def _presentable(error: Exception, stream: GenerationStream) -> PrebledError:
    """What the client is told of an error midway; one that is a bug of ours is told to the log."""
    if isinstance(error, PrebledError):
        return error
    log.error("answer failed", request_id=stream.request_id, exc_info=error)
    return InternalError("internal error")
