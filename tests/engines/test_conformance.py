"""The contract of `prebled.worker.engine`, held by every engine."""

from __future__ import annotations

import random

import pytest
from engine_driver import BLOCK_TOKENS, Driver, prompt, submit

from prebled.core.types import RunId
from prebled.errors import PromptTooLong
from prebled.tiny_model import EOS_TOKEN_IDS
from prebled.worker.validate import check_submit

pytest_plugins = ("engine_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_same_tokens_alone_in_a_batch_and_after_a_cached_prefix(wide: Driver) -> None:
    prompts = [prompt(seed, 50 + 37 * seed) for seed in range(8)]
    alone = [(await wide.run(one, max_tokens=24))[0] for one in prompts]
    assert all(outcome.cached_tokens == 0 for outcome in alone)
    batch = await wide.run(*prompts, max_tokens=24)
    assert any(outcome.cached_tokens > 0 for outcome in batch)
    assert [one.tokens for one in batch] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in alone}) == len(prompts)


async def test_same_tokens_beside_an_aborted_run(wide: Driver) -> None:
    asked = prompt(100, 200)
    undisturbed = (await wide.run(asked, max_tokens=40))[0]
    kept, neighbour = wide.new_id(), wide.new_id()
    wide.submit(submit(neighbour, prompt(101, 300), 600), submit(kept, asked, 40, cache_salt="fresh"))
    await wide.wait(lambda: len(wide.outcomes[neighbour].tokens) >= 4)
    wide.engine.abort_nowait([RunId(neighbour)])
    await wide.wait_ends(kept, neighbour)
    assert wide.outcomes[neighbour].done.reason == "abort"
    assert wide.outcomes[kept].tokens == undisturbed.tokens


async def test_a_run_continued_on_another_engine_goes_on_the_same(wide: Driver, narrow: Driver) -> None:
    for seed in range(110, 114):
        asked = prompt(seed, 90)
        whole = (await wide.run(asked, max_tokens=48))[0].tokens
        rest = (await narrow.run(asked + whole[:19], max_tokens=29))[0].tokens
        assert whole[:19] + rest == whole


@pytest.mark.parametrize(
    ("prompt_tokens", "cached_tokens"), [(60, 0), (64, 0), (65, 64), (127, 64), (128, 64), (129, 128), (192, 128)]
)
async def test_cached_tokens_are_whole_blocks_short_of_the_last_token(
    wide: Driver, prompt_tokens: int, cached_tokens: int
) -> None:
    asked = prompt(120 + prompt_tokens, prompt_tokens)
    first, again = (await wide.run(asked, max_tokens=2))[0], (await wide.run(asked, max_tokens=2))[0]
    assert (first.done.cached_tokens, again.done.cached_tokens) == (0, cached_tokens)


async def test_other_salts_share_nothing(wide: Driver) -> None:
    asked = prompt(400, 200)
    cached = [(await wide.run(asked, cache_salt=salt))[0].cached_tokens for salt in ("a", "b", "a", "", "")]
    assert cached == [0, 0, 192, 0, 192]


async def test_a_prompt_grows_on_what_is_cached_of_it(wide: Driver) -> None:
    turns = prompt(410, 640)
    cached = [(await wide.run(turns[:length], max_tokens=1))[0].cached_tokens for length in (130, 300, 640)]
    assert cached == [0, 128, 256]


async def test_ends_at_length_and_at_stop_tokens(wide: Driver) -> None:
    asked = prompt(420, 70)
    free = (await wide.run(asked, max_tokens=20))[0]
    assert (free.done.reason, len(free.tokens)) == ("length", 20)
    stop = free.tokens[9]
    stopped = (await wide.run(asked, max_tokens=20, stop_token_ids=(stop,), ignore_eos=False))[0]
    assert stopped.done.reason == "stop"
    assert stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]


async def test_end_of_sequence_is_honoured_unless_ignored(wide: Driver) -> None:
    prompts = [prompt(seed, 40) for seed in range(430, 494)]
    deaf = await wide.run(*prompts, max_tokens=96)
    found = [(one, outcome.tokens) for one, outcome in zip(prompts, deaf, strict=True)]
    found = [(one, tokens) for one, tokens in found if set(EOS_TOKEN_IDS) & set(tokens[:-1])]
    assert found, "none of these prompts brought forth an end-of-sequence token: take others"
    asked, tokens = found[0]
    end = next(index for index, token in enumerate(tokens) if token in EOS_TOKEN_IDS)
    heard = (await wide.run(asked, max_tokens=96, ignore_eos=False))[0]
    assert (heard.done.reason, heard.tokens) == ("stop", tokens[: end + 1])


async def test_capacity_is_what_fits(wide: Driver, narrow: Driver) -> None:
    for driver in (wide, narrow):
        capacity = driver.capacity
        assert (capacity.block_tokens, capacity.vocab_size) == (BLOCK_TOKENS, 2048)
        longest = prompt(500, capacity.max_prompt_tokens)
        most = capacity.max_total_tokens - capacity.max_prompt_tokens
        assert (await driver.run(longest, max_tokens=most))[0].done.reason == "length"
        assert isinstance(check_submit(submit("more", longest, most + 1), capacity), PromptTooLong)
        assert isinstance(check_submit(submit("longer", [*longest, 100], 1), capacity), PromptTooLong)
        short = prompt(501, 65)  # rounds up to blocks worst
        outcome = (await driver.run(short, max_tokens=capacity.max_total_tokens - 65))[0]
        assert (outcome.done.reason, len(outcome.tokens)) == ("length", capacity.max_total_tokens - 65)
    assert (wide.capacity.kv_tokens, narrow.capacity.kv_tokens) == (16384, 1024)
    assert (wide.capacity.max_running, narrow.capacity.max_running) == (16, 1)


async def test_abort_frees_the_kv_of_a_run_and_cached_tokens_are_not_in_use(wide: Driver) -> None:
    await wide.wait_load(lambda load: load.kv_used_tokens == 0)  # although earlier prompts are cached
    run_id = wide.new_id()
    wide.submit(submit(run_id, prompt(510, 300), 700))
    await wide.wait(lambda: len(wide.outcomes[run_id].tokens) >= 8)
    load = await wide.wait_load(lambda load: load.kv_used_tokens >= 300)
    assert (load.queued, load.running) == (0, 1)
    wide.engine.abort_nowait([RunId(run_id)])
    await wide.wait_ends(run_id)
    outcome = wide.outcomes[run_id]
    assert outcome.done.reason == "abort"
    assert 8 <= len(outcome.tokens) < 700
    assert await wide.wait_load(lambda load: load.kv_used_tokens == 0)


async def test_load_counts_the_queue_and_aborts_reach_into_it(narrow: Driver) -> None:
    runner, *waiting = (narrow.new_id() for _ in range(5))
    narrow.submit(submit(runner, prompt(520, 100), 700))
    narrow.submit(*(submit(run_id, prompt(521 + n, 100), 5) for n, run_id in enumerate(waiting)))
    await narrow.wait(lambda: len(narrow.outcomes[runner].tokens) >= 8)
    load = await narrow.wait_load(lambda load: load.queued == 4)
    assert load.running == 1
    narrow.engine.abort_nowait([RunId(waiting[1]), RunId(waiting[3])])
    await narrow.wait_ends(waiting[1], waiting[3])
    assert narrow.outcomes[runner].end is None
    assert [narrow.outcomes[run_id].done.reason for run_id in (waiting[1], waiting[3])] == ["abort", "abort"]
    narrow.engine.abort_nowait([RunId(runner)])
    await narrow.wait_ends(runner, waiting[0], waiting[2])
    assert [len(narrow.outcomes[run_id].tokens) for run_id in (waiting[0], waiting[2])] == [5, 5]
    load = await narrow.wait_load(lambda load: load.kv_used_tokens == 0)
    assert (load.queued, load.running) == (0, 0)


async def test_an_abort_ends_only_the_run_it_names(wide: Driver) -> None:
    """SGLang aborts by the beginning of a request's id."""
    short, long, other = "same", "same-and-more", "sam"
    wide.submit(*(submit(run_id, prompt(530 + n, 60), 120) for n, run_id in enumerate((short, long, other))))
    await wide.wait(lambda: all(wide.outcomes[run_id].tokens for run_id in (short, long, other)))
    wide.engine.abort_nowait([RunId(short), RunId("unknown"), RunId(""), RunId(short)])
    await wide.wait_ends(short, long, other)
    assert wide.outcomes[short].done.reason == "abort"
    assert [wide.outcomes[run_id].done.reason for run_id in (long, other)] == ["length", "length"]


async def test_who_is_cached_goes_first(narrow: Driver) -> None:
    """Preble's priority groups: with one run at a time, the order of the ends is the order of the queue."""
    await narrow.run(prompt(540, 400), max_tokens=1)
    blocker, uncached, cached = narrow.new_id(), narrow.new_id(), narrow.new_id()
    narrow.submit(submit(blocker, prompt(541, 64), 60))
    await narrow.wait(lambda: bool(narrow.outcomes[blocker].tokens))
    narrow.submit(submit(uncached, prompt(542, 400), 4))
    narrow.submit(submit(cached, prompt(540, 400), 4))
    await narrow.wait_ends(cached)
    assert narrow.outcomes[uncached].end is None
    assert narrow.outcomes[cached].cached_tokens == 384
    await narrow.wait_ends(uncached)


async def test_every_run_ends_once_in_a_random_mix(wide: Driver) -> None:
    rng = random.Random(7)
    run_ids = [wide.new_id() for _ in range(60)]
    unsent = list(run_ids)
    aborted: set[str] = set()
    while unsent or any(wide.outcomes[run_id].end is None for run_id in run_ids):
        for run_id in unsent[: rng.randint(0, 4)]:
            asked = prompt(600 + rng.randrange(6), 320)[: rng.randint(1, 320)]
            wide.submit(submit(run_id, asked, rng.randint(1, 40), temperature=rng.choice((0.0, 0.8))))
            unsent.remove(run_id)
        if rng.random() < 0.3 and len(unsent) < len(run_ids):
            victim = rng.choice(run_ids[: len(run_ids) - len(unsent)])
            if wide.outcomes[victim].end is None:
                aborted.add(victim)
            wide.engine.abort_nowait([RunId(victim)])
        if any(wide.outcomes[run_id].end is None for run_id in run_ids if run_id in wide.outcomes):
            await wide.step()
    ends = [wide.outcomes[run_id].done for run_id in run_ids]
    assert {end.run_id for end in ends if end.reason == "abort"} <= aborted
    assert {end.reason for end in ends} >= {"length", "abort"}
    load = await wide.wait_load(lambda load: load.kv_used_tokens == 0)
    assert (load.queued, load.running) == (0, 0)
