"""Many greedy streams at once, as the tests of faults want them: all begun, none ended, when something is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prebled import AsyncClient


async def greedy_texts(
    address: str, prompts: Sequence[str], max_tokens: int, all_begun: asyncio.Event | None = None
) -> list[str]:
    """The texts of all prompts, streamed over one connection. `all_begun` is set once each has brought tokens."""
    waiting = set(range(len(prompts)))

    async def one(client: AsyncClient, number: int) -> str:
        stream = await client.generate(prompts[number], max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        pieces = []
        async for chunk in stream:
            pieces.append(chunk.text)
            waiting.discard(number)
            if all_begun is not None and not waiting:
                all_begun.set()
        assert stream.usage is not None
        assert stream.usage.completion_tokens == max_tokens
        return "".join(pieces)

    async with AsyncClient(address) as client:
        return await asyncio.gather(*(one(client, number) for number in range(len(prompts))))
