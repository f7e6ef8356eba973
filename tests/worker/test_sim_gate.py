"""No block is computed twice at once in a simulated engine whose queue has priority groups."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import ClassVar

import pytest
from sim_runs import Watched, expected_tokens, prompt, submit, watched

from prebled.worker import sim_batch
from prebled.worker.sglang_gate import MOST_PASSED_OVER
from prebled.worker.sim_gate import BlockGate
from prebled.worker.sim_run import SimRun

BLOCK_TOKENS = 16


def submit_all(engine: Watched, prompts: dict[str, list[int]], max_tokens: int = 1) -> None:
    engine.submit(*(submit(run_id, tokens, max_tokens) for run_id, tokens in prompts.items()))


def steps(engine: Watched) -> list[set[str]]:
    """Whose prompts each step completes, until nobody is left."""
    made: list[set[str]] = []
    while not engine.model.is_idle:
        before = set(engine.cached)
        engine.step()
        made.append(set(engine.cached) - before)
    return made


def computed(engine: Watched) -> list[int]:
    """Prompt tokens of each step."""
    return [sample.new_tokens for sample in engine.samples]


def test_of_a_burst_one_computes_the_prefix() -> None:
    engine = watched()
    submit_all(engine, dict.fromkeys("abcde", prompt(1, 100)))
    assert steps(engine) == [{"a"}, {*"bcde"}]
    assert engine.cached == {"a": 0, "b": 96, "c": 96, "d": 96, "e": 96}
    assert computed(engine) == [100, 4 * 4]


def test_first_come_first_served_computes_it_for_each() -> None:
    engine = watched(queue_policy="fcfs")
    submit_all(engine, dict.fromkeys("abcde", prompt(1, 100)))
    assert steps(engine) == [{*"abcde"}]
    assert engine.cached == dict.fromkeys("abcde", 0)


def test_others_fill_the_step() -> None:
    engine = watched()
    submit_all(engine, {f"{family}{number}": prompt(family, 50) for number in range(2) for family in range(3)})
    assert steps(engine) == [{"00", "10", "20"}, {"01", "11", "21"}]


def test_only_so_many_are_passed_over() -> None:
    few, many = watched(), watched()
    for engine, passed_over in ((few, MOST_PASSED_OVER - 1), (many, MOST_PASSED_OVER)):
        shared = {f"{number}": prompt(1, 100) for number in range(1 + passed_over)}
        submit_all(engine, {**shared, "other": prompt(2, 100)})
    assert steps(few)[0] == {"0", "other"}
    assert steps(many)[:2] == [{"0"}, {*map(str, range(1, 1 + MOST_PASSED_OVER)), "other"}]


def test_a_prefix_that_is_cached_in_part_is_completed_by_one() -> None:
    engine = watched()
    long = prompt(1, 100)
    submit_all(engine, {"warm": long[:40]})
    engine.step()
    submit_all(engine, {"short": [*long[:40], *prompt(2, 60)], "long": long, "again": long})
    assert steps(engine) == [{"short", "long"}, {"again"}]  # two blocks are cached, and the third differs
    assert engine.cached == {"warm": 0, "short": 32, "long": 32, "again": 96}


def test_blocks_that_are_computed_anyway_are_not_waited_for() -> None:
    """The last token always is, and its block with it."""
    engine = watched()
    submit_all(engine, {"a": prompt(1, 16), "b": prompt(1, 16), "longer": prompt(1, 16) + prompt(2, 1)})
    assert steps(engine) == [{"a", "b"}, {"longer"}]
    assert engine.cached == {"a": 0, "b": 0, "longer": 16}


def test_a_block_that_stays_open_is_not_waited_for() -> None:
    engine = watched()
    submit_all(engine, {"open": prompt(1, 15), "whole": prompt(1, 15) + prompt(2, 10)})
    assert steps(engine) == [{"open", "whole"}]


def test_who_shares_a_prompt_in_chunks_takes_it_whole() -> None:
    """Blocks 0 to 11, and 8 tokens that fill none: the last chunk is joined."""
    engine = watched(chunk_tokens=64)
    submit_all(engine, dict.fromkeys("ab", prompt(1, 200)))
    assert steps(engine) == [set(), set(), set(), {"a", "b"}]
    assert engine.cached == {"a": 0, "b": 192}
    assert computed(engine) == [64, 64, 64, 8 + 8]


def test_a_last_chunk_with_room_is_joined_by_those_that_do_not_need_it() -> None:
    engine = watched(chunk_tokens=64)
    submit_all(engine, {"a": prompt(1, 150), "b": prompt(1, 150), "other": prompt(2, 20)})
    assert steps(engine) == [set(), set(), {"a", "other"}, {"b"}]
    assert engine.cached == {"a": 0, "b": 144, "other": 0}
    assert computed(engine) == [64, 64, 22 + 20, 6]


@pytest.mark.parametrize("mixed_chunks", [True, False])
def test_who_was_passed_over_is_next_while_others_decode(mixed_chunks: bool) -> None:
    engine = watched(mixed_chunks=mixed_chunks)
    submit_all(engine, {"decoding": prompt(2, 20)}, 40)
    engine.step()
    submit_all(engine, dict.fromkeys("ab", prompt(1, 100)), 30)
    engine.step()
    assert engine.model.load().queued == 1
    engine.step()
    assert engine.cached == {"decoding": 0, "a": 0, "b": 96}
    engine.finish()
    assert engine.tokens["a"] == engine.tokens["b"] == expected_tokens(prompt(1, 100), 30)


def test_one_that_does_not_fit_keeps_its_place_behind_those_passed_over() -> None:
    """Ten blocks: two for the first and one more for each that shares its prompt; five do not fit beside these."""
    engine = watched(kv_tokens=160, context_tokens=160)
    submit_all(engine, {"a": prompt(1, 20), "b": prompt(1, 20), "big": prompt(2, 130), "c": prompt(1, 20)}, 10)
    engine.step()
    assert engine.cached == {"a": 0}
    assert engine.model.load().queued == 3
    engine.finish()
    assert len(engine.ends) == 4
    assert engine.cached["b"] == engine.cached["c"] == 16


@pytest.mark.parametrize("seed", range(12))
def test_with_room_for_all_every_block_is_computed_once(seed: int) -> None:
    """Whatever comes when, in steps of any size. No prompt ends with a whole block, which would be computed again."""
    rng = random.Random(seed)
    engine = watched(kv_tokens=100_000, chunk_tokens=rng.choice((7, 48, 2000)), max_running=rng.choice((2, 50)))
    blocks: set[tuple[int, ...]] = set()
    tails = 0
    for number in range(50):
        family = prompt(rng.randrange(3), 160)
        tokens = family[: rng.randint(0, 160)] + prompt(100 + number, rng.randint(1, 40))
        tokens += [0] * (len(tokens) % BLOCK_TOKENS == 0)
        whole = len(tokens) // BLOCK_TOKENS
        blocks.update(tuple(tokens[: (at + 1) * BLOCK_TOKENS]) for at in range(whole))
        tails += len(tokens) % BLOCK_TOKENS
        submit_all(engine, {str(number): tokens}, rng.choice((1, 9)))
        for _ in range(rng.choice((0, 0, 0, 1, 4))):
            engine.step()
    engine.finish()
    assert sum(computed(engine)) == len(blocks) * BLOCK_TOKENS + tails


class WatchedGate(BlockGate):
    """Keeps, step by step, who was first in the queue, and whether it was passed over."""

    firsts: ClassVar[list[tuple[str, bool]]] = []

    def let_through(self, waiting: Iterable[SimRun], awaited: Callable[[SimRun], bytes]) -> Iterator[SimRun]:
        runs = list(waiting)
        through = super().let_through(runs, awaited)
        first = next(through, None)
        self.firsts.append((runs[0].run_id, first is not runs[0]))
        if first is not None:
            yield first
            yield from through


@pytest.mark.parametrize("seed", range(8))
def test_who_is_first_in_the_queue_waits_for_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """More come than can go, all share beginnings, and little stays cached: nobody is passed over twice when first."""
    monkeypatch.setattr(sim_batch, "BlockGate", WatchedGate)
    monkeypatch.setattr(WatchedGate, "firsts", [])
    rng = random.Random(seed)
    engine = watched(kv_tokens=1000, context_tokens=500, chunk_tokens=rng.choice((50, 150)), max_running=6)
    for number in range(200):
        if number < 100:
            family = prompt(number // 3 + rng.randrange(2), 400)
            tokens = family[: rng.randint(100, 400)] + prompt(1000 + number, rng.randint(1, 24))
            submit_all(engine, {str(number): tokens}, rng.choice((1, 8)))
        engine.step()
    engine.finish()
    firsts = WatchedGate.firsts
    assert any(is_passed_over for _, is_passed_over in firsts)
    for (run_id, is_passed_over), after in pairwise(firsts):
        assert not is_passed_over or after != (run_id, True)
