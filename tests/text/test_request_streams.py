"""Streams between runtime and door: order, merging, ends, bounds, and one call of `on_close` at most."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prebled.core.types import RequestId
from prebled.daemon.gateway import StreamUpdate
from prebled.daemon.streams import RequestStream
from prebled.daemon.text import TextAssembler
from prebled.errors import SlowReader, WorkerFailed
from prebled.messages import Usage

USAGE = Usage(prompt_tokens=5, completion_tokens=99, cached_tokens=2)


class CharDecoder:
    def push(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def finish(self) -> str:
        return ""


class Made:
    """A stream, and how often it asked for the request to be aborted."""

    def __init__(self, stop: tuple[str, ...] = (), stream_tokens: int = 1000) -> None:
        self.closed = 0
        self.stream = RequestStream(
            RequestId("r1"), TextAssembler(CharDecoder(), stop), stream_tokens=stream_tokens, on_close=self._close
        )

    def _close(self) -> None:
        self.closed += 1

    def push(self, text: str) -> bool:
        return self.stream.push(tuple(map(ord, text)))


async def read_all(stream: RequestStream) -> list[StreamUpdate]:
    return [update async for update in stream]


async def test_updates_come_one_by_one_to_a_reader_that_keeps_up() -> None:
    made = Made()
    reading = asyncio.create_task(read_all(made.stream))
    for piece in ("a", "bc", "d"):
        await asyncio.sleep(0)
        made.push(piece)
        await asyncio.sleep(0)
    made.stream.finish("length", USAGE)
    updates = await reading
    assert [update.text for update in updates] == ["a", "bc", "d", ""]
    assert [update.tokens for update in updates] == [(97,), (98, 99), (100,), ()]
    assert [update.reason for update in updates] == [None, None, None, "length"]
    assert updates[-1].usage == USAGE
    assert list(made.stream.sent_tokens) == [97, 98, 99, 100]


async def test_updates_that_pile_up_are_merged() -> None:
    made = Made()
    for piece in "abcdef":
        made.push(piece)
    assert await anext(made.stream) == StreamUpdate("abcdef", tuple(map(ord, "abcdef")))
    made.push("g")
    made.stream.finish("stop", USAGE)
    assert await anext(made.stream) == StreamUpdate("g", (103,), "stop", USAGE)
    with pytest.raises(StopAsyncIteration):
        await anext(made.stream)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text("abE", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    reads=st.lists(st.booleans(), max_size=8),
)
def test_nothing_is_lost_doubled_or_out_of_order(text: str, cuts: list[int], reads: list[bool]) -> None:
    async def run() -> None:
        made = Made(stop=("aEb",))
        updates: list[StreamUpdate] = []
        bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        for number, (start, end) in enumerate(pairwise(bounds)):
            before = len(made.stream.sent_tokens)
            made.push(text[start:end])
            if number < len(reads) and reads[number] and len(made.stream.sent_tokens) > before:
                updates.append(await anext(made.stream))
        made.stream.finish("length", USAGE)
        updates += await read_all(made.stream)
        end = text.find("aEb")
        assert "".join(update.text for update in updates) == (text if end < 0 else text[:end])
        tokens = [token for update in updates for token in update.tokens]
        assert tokens == list(made.stream.sent_tokens) == list(map(ord, text if end < 0 else text[: end + 3]))
        assert [update.reason for update in updates if update.reason] == ["length" if end < 0 else "stop"]

    asyncio.run(run())


async def test_a_stop_string_ends_the_answer_and_counts_its_own_tokens() -> None:
    made = Made(stop=("END",))
    assert made.push("some ") is False
    assert made.push("text ENDED") is True
    assert made.push("more") is True
    made.stream.finish("length", USAGE)
    (update,) = await read_all(made.stream)
    assert update.text == "some text "
    assert update.reason == "stop"
    assert update.usage == Usage(5, len("some text END"), 2)
    assert len(made.stream.sent_tokens) == len("some text END")
    assert made.closed == 0


async def test_text_held_back_comes_with_the_end() -> None:
    made = Made(stop=("END",))
    made.push("the EN")
    assert (await anext(made.stream)).text == "the "
    made.stream.finish("length", USAGE)
    assert await anext(made.stream) == StreamUpdate("EN", (), "length", USAGE)


async def test_an_error_comes_after_what_was_there() -> None:
    made = Made()
    made.push("abc")
    made.stream.fail(WorkerFailed("gone"))
    assert (await anext(made.stream)).text == "abc"
    with pytest.raises(WorkerFailed, match="gone"):
        await anext(made.stream)
    assert isinstance(await made.stream.wait_failed(), WorkerFailed)
    await made.stream.aclose()
    assert made.closed == 0  # the request has ended already


async def test_an_error_wakes_a_waiting_reader() -> None:
    made = Made()
    reading = asyncio.create_task(anext(made.stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    made.stream.fail(WorkerFailed("gone"))
    with pytest.raises(WorkerFailed):
        await reading


async def test_closing_aborts_once_and_only_what_runs() -> None:
    made = Made()
    reading = asyncio.create_task(read_all(made.stream))
    await asyncio.sleep(0)
    await made.stream.aclose()
    await made.stream.aclose()
    assert made.closed == 1
    assert await reading == []
    assert made.push("late") is False
    made.stream.finish("stop", USAGE)
    made.stream.fail(WorkerFailed("late"))
    assert await read_all(made.stream) == []
    finished = Made()
    finished.stream.finish("stop", USAGE)
    await finished.stream.aclose()
    assert finished.closed == 0
    assert await read_all(finished.stream) == []


async def test_a_reader_that_is_too_slow_is_told_and_the_request_aborted() -> None:
    made = Made(stream_tokens=10)
    failed = asyncio.create_task(made.stream.wait_failed())
    made.push("0123456789")
    await asyncio.sleep(0)
    assert made.closed == 0
    made.push("x")
    assert isinstance(await failed, SlowReader)
    assert made.closed == 1
    with pytest.raises(SlowReader, match=r"11 tokens behind, .* 10"):
        await anext(made.stream)
    assert made.push("more") is False
    await made.stream.aclose()
    assert made.closed == 1


async def test_a_burst_does_not_make_a_waiting_reader_slow() -> None:
    made = Made(stream_tokens=10)
    reading = asyncio.create_task(read_all(made.stream))
    await asyncio.sleep(0)
    for _ in range(50):
        made.push("abc")
    await asyncio.sleep(0)
    made.stream.finish("stop", USAGE)
    assert "".join(update.text for update in await reading) == "abc" * 50
    assert made.closed == 0


async def test_waiting_for_a_failure_can_be_given_up() -> None:
    made = Made()
    waiting = asyncio.create_task(made.stream.wait_failed())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    made.stream.fail(WorkerFailed("gone"))
    assert isinstance(await made.stream.wait_failed(), WorkerFailed)


async def test_a_cancelled_read_loses_nothing() -> None:
    made = Made()
    reading = asyncio.create_task(anext(made.stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    made.push("abc")
    reading.cancel()  # after it was woken, before it could take
    await asyncio.wait([reading])
    assert (await anext(made.stream)).text == "abc"
