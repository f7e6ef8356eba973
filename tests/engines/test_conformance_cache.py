"""The contract of `prebled.worker.engine` on what an engine tells of its cache, held by every engine."""

from __future__ import annotations

import random

import numpy as np
import pytest
from engine_driver import BLOCK_TOKENS, Driver, prompt, submit
from naive_cache import NaiveCache

from prebled.core.blocks import block_hashes, cacheable_blocks, namespace_seed

pytest_plugins = ("engine_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="session")


def path(tokens: list[int], model: str = "served", salt: str = "") -> list[int]:
    """The hashes of all full blocks."""
    return block_hashes(np.asarray(tokens, dtype="<u4").tobytes(), BLOCK_TOKENS, namespace_seed(model, "", salt))


def usable_tokens(driver: Driver, tokens: list[int], model: str = "served", salt: str = "") -> int:
    """What a run of this prompt alone would take from the cache, by what was told."""
    usable = 0
    for block in path(tokens, model, salt)[: cacheable_blocks(len(tokens), BLOCK_TOKENS)]:
        if block not in driver.told.parents:
            break
        usable += BLOCK_TOKENS
    return usable


async def test_what_a_run_leaves_in_the_cache_is_told_before_its_end(wide: Driver) -> None:
    wide.set_namespace("served")
    asked = prompt(800, 200)
    for salt in ("", "s"):
        run_id = wide.new_id()
        wide.submit(submit(run_id, asked, 100, cache_salt=salt))
        await wide.step_until_tokens(run_id)
        assert wide.told.parents.keys() >= set(path(asked, salt=salt)), "the prompt can be used while the run goes on"
        await wide.wait_ends(run_id)
        made = asked + wide.outcomes[run_id].tokens[:-1]  # nothing is computed of the last token
        assert len(path(made)) > len(path(asked))
        assert wide.told.parents.keys() >= set(path(made, salt=salt))


async def test_under_constant_eviction_what_was_told_is_what_is_taken(narrow: Driver) -> None:
    """A cache of 16 blocks, prompts of up to 12 that share beginnings: each takes just what was told to be there."""
    narrow.set_namespace("served")
    rng = random.Random(11)
    cached, evictions = [], 0
    for _ in range(40):
        family, length = rng.randrange(3), rng.randint(1, 700)
        salt = rng.choice(("", "", "s"))
        asked = prompt(810 + family, 400)[: rng.choice((130, 260, 400))] + prompt(rng.randrange(900, 904), 400)
        asked = asked[:length]
        expected = usable_tokens(narrow, asked, salt=salt)
        before = set(narrow.told.parents)
        (outcome,) = await narrow.run(asked, max_tokens=rng.choice((1, 2, 70)), cache_salt=salt)
        assert outcome.cached_tokens == expected
        cached.append(expected)
        evictions += len(before - narrow.told.parents.keys())
        assert narrow.told == NaiveCache(narrow.engine.held())
    assert evictions > 50
    assert sum(map(bool, cached)) >= 5


async def test_many_at_once_leave_what_was_told(wide: Driver) -> None:
    rng = random.Random(12)
    wide.set_namespace("served")
    for _ in range(3):
        prompts = [prompt(820 + rng.randrange(4), 600)[: rng.randint(1, 600)] for _ in range(40)]
        await wide.run(*prompts, max_tokens=40)
        assert wide.told == NaiveCache(wide.engine.held())
        again = prompts[0]
        expected = usable_tokens(wide, again)
        assert (await wide.run(again, max_tokens=1))[0].cached_tokens == expected


async def test_under_another_name_what_is_told_is_what_is_taken(wide: Driver) -> None:
    asked = prompt(830, 300)
    await wide.run(asked, max_tokens=1)
    assert wide.told.parents.keys() >= set(path(asked))
    wide.set_namespace("renamed")
    assert not wide.told.parents.keys() & set(path(asked)), "an engine may rename what it holds, or drop it"
    expected = usable_tokens(wide, asked, model="renamed")
    assert (await wide.run(asked, max_tokens=1))[0].cached_tokens == expected
    wide.set_namespace("served")
