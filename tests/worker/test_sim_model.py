"""The simulated engine: what it computes, in which order, with which blocks, and how long it says that takes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_runs import (
    COST,
    EOS_TOKEN_IDS,
    VOCAB_SIZE,
    Watched,
    expected_tokens,
    held_by,
    prompt,
    sim_model,
    submit,
    token_bytes,
    watched,
)

from prebled.core.blocks import hash_path, namespace_seed
from prebled.core.types import RunId
from prebled.errors import SettingsError
from prebled.messages import KvStored, StepSample, Submit
from prebled.worker.sim_model import EOS_ONE_IN, Vocabulary


def test_the_answer_is_the_function_of_all_tokens_so_far() -> None:
    engine = watched()
    prompts = {str(seed): prompt(seed, 1 + 37 * seed) for seed in range(6)}
    engine.submit(*(submit(run_id, tokens, 40) for run_id, tokens in prompts.items()))
    engine.finish()
    for run_id, tokens in prompts.items():
        assert engine.tokens[run_id] == expected_tokens(tokens, 40)
    half = engine.tokens["5"][:17]
    engine.submit(submit("continued", [*prompts["5"], *half], 23))
    engine.finish()
    assert half + engine.tokens["continued"] == engine.tokens["5"]


def test_ends_of_sequence_come_as_often_as_said_and_end_the_run() -> None:
    vocabulary = Vocabulary(VOCAB_SIZE, EOS_TOKEN_IDS)
    made = [vocabulary.token(random.Random(seed).getrandbits(64)) for seed in range(20_000)]
    share = sum(token in EOS_TOKEN_IDS for token in made) / len(made)
    assert 0.5 / EOS_ONE_IN < share < 2 / EOS_ONE_IN
    assert set(EOS_TOKEN_IDS) <= set(made)
    assert {min(made), max(made)} == {0, VOCAB_SIZE - 1}
    engine = watched()
    engine.submit(*(submit(str(seed), prompt(seed, 20), 400, ignore_eos=False) for seed in range(30)))
    engine.finish()
    reasons = {end.reason for end in engine.ends.values()}
    assert reasons == {"stop", "length"}
    for seed in range(30):
        assert engine.tokens[str(seed)] == expected_tokens(prompt(seed, 20), 400, EOS_TOKEN_IDS)


def test_a_stop_token_ends_the_run_with_it_and_is_ignored_with_the_end_of_sequence() -> None:
    asked = prompt(1, 50)
    free = expected_tokens(asked, 20)
    engine = watched()
    engine.submit(
        submit("stopped", asked, 20, ignore_eos=False, stop_token_ids=(free[6],)),
        submit("deaf", asked, 20, stop_token_ids=(free[6],)),
    )
    engine.finish()
    assert engine.tokens["stopped"] == free[:7]
    assert engine.ends["stopped"].reason == "stop"
    assert engine.tokens["deaf"] == free


def test_a_prompt_is_shared_from_the_end_of_the_step_that_computes_it() -> None:
    engine = watched(queue_policy="fcfs")
    asked = prompt(1, 100)
    engine.submit(submit("a", asked, 30), submit("b", asked, 30))
    engine.step()
    engine.submit(submit("c", asked, 30))
    engine.step()
    assert engine.cached == {"a": 0, "b": 0, "c": 96}
    # Six shared blocks once, and each run's last one.
    assert engine.model.load().kv_used_tokens == (6 + 3) * 16


def test_of_a_prompt_in_whole_blocks_the_last_is_computed_again() -> None:
    engine = watched()
    for run_id in ("first", "again"):
        engine.submit(submit(run_id, prompt(1, 96), 1))
        engine.finish()
    assert engine.cached == {"first": 0, "again": 80}


def test_salts_share_nothing() -> None:
    engine = watched()
    for salt in ("a", "b", "a"):
        engine.submit(submit(f"{salt}{len(engine.ends)}", prompt(1, 100), 1, cache_salt=salt))
        engine.finish()
    assert list(engine.cached.values()) == [0, 0, 96]


def test_the_output_is_cached_for_the_next_turn() -> None:
    engine = watched()
    asked = prompt(1, 60)
    engine.submit(submit("turn 1", asked, 40))
    engine.finish()
    engine.submit(submit("turn 2", [*asked, *engine.tokens["turn 1"], *prompt(2, 30)], 1))
    engine.finish()
    # The last of the 100 tokens was never computed: its block is not whole.
    assert engine.cached["turn 2"] == 96


def test_steps_take_what_the_profile_says() -> None:
    engine = watched(chunk_tokens=512)
    engine.submit(submit("a", prompt(1, 700), 3))
    first = COST.prefill_step_s(512, 512)
    assert engine.step() == pytest.approx(first)
    assert engine.step() == pytest.approx(COST.prefill_step_s(188, 700))
    assert engine.step() == pytest.approx(COST.decode_step_s(1, 701))
    engine.submit(submit("b", prompt(2, 300), 1))
    mixed = COST.prefill_step_s(300, 300) + COST.decode_sequence_s + COST.decode_context_s * 702
    assert engine.step() == pytest.approx(mixed)
    assert set(engine.ends) == {"a", "b"}


def test_no_more_run_than_may() -> None:
    engine = watched(max_running=3)
    engine.submit(*(submit(str(seed), prompt(seed, 20), 5) for seed in range(7)))
    most = 0
    while not engine.model.is_idle:
        engine.step()
        load = engine.model.load()
        assert load.queued + load.running == 7 - len(engine.ends)
        most = max(most, load.running)
    assert most == 3
    assert len(engine.ends) == 7


def test_runs_that_outgrow_the_cache_are_retracted_and_finish_the_same() -> None:
    # Early ends are expected of those that listen for them, so four are admitted where three fit at full length.
    engine = watched(kv_tokens=640, context_tokens=320)
    answers = {seed: expected_tokens(prompt(seed, 30), 150, EOS_TOKEN_IDS) for seed in range(30)}
    long = [seed for seed, answer in answers.items() if len(answer) == 150][:6]
    engine.submit(*(submit(str(seed), prompt(seed, 30), 150, ignore_eos=False) for seed in long))
    engine.finish()
    assert engine.model.retractions > 0
    assert engine.tokens == {str(seed): answers[seed] for seed in long}
    assert {end.cached_tokens for end in engine.ends.values()} == {0}, "that of the first stay counts"


def test_the_longer_nothing_is_retracted_the_less_is_reserved() -> None:
    engine = watched(kv_tokens=4096, max_running=8)
    seed = next(seed for seed in range(50) if len(expected_tokens(prompt(seed, 16), 200, EOS_TOKEN_IDS)) == 200)
    engine.submit(submit("long", prompt(seed, 16), 4000, ignore_eos=False))
    engine.step()
    engine.submit(submit("more", prompt(seed, 16), 1400, ignore_eos=False))
    engine.step()
    assert engine.model.load().queued == 1
    while engine.model.load().queued:
        engine.step()
    assert 20 < len(engine.tokens["long"]) < 200


def test_fixed_lengths_are_reserved_in_full() -> None:
    engine = watched(kv_tokens=640, context_tokens=320)
    engine.submit(*(submit(str(seed), prompt(seed, 30), 150) for seed in range(6)))
    engine.finish()
    assert engine.model.retractions == 0
    assert len(engine.ends) == 6


def test_the_least_recently_used_leaf_goes_first() -> None:
    engine = watched(kv_tokens=160, context_tokens=160)

    def cached(run_id: str, seed: int, tokens: int = 49) -> int:
        engine.submit(submit(run_id, prompt(seed, tokens), 1))
        engine.finish()
        return engine.cached[run_id]

    assert [cached("a", 1), cached("b", 2), cached("c", 3)] == [0, 0, 0]  # 9 of 10 blocks
    assert cached("a2", 1) == 48
    assert cached("d", 4) == 0  # wants 4: one is free, b is the oldest
    assert cached("a3", 1) == 48
    assert cached("c2", 3) == 48
    assert cached("b2", 2) == 0


def test_who_is_cached_goes_first_unless_the_queue_is_first_come_first_served() -> None:
    for queue_policy, first in (("groups", "cached"), ("fcfs", "uncached")):
        engine = watched(max_running=1, queue_policy=queue_policy)
        engine.submit(submit("warm", prompt(1, 400), 1))
        engine.finish()
        engine.submit(submit("uncached", prompt(2, 400), 3), submit("cached", prompt(1, 400), 3))
        engine.finish()
        assert list(engine.ends)[1] == first


def test_an_abort_frees_at_once_and_is_told_once() -> None:
    engine = watched(max_running=2)
    engine.submit(*(submit(str(seed), prompt(seed, 40), 50) for seed in range(3)))
    engine.step()
    assert engine.model.load().kv_used_tokens == 2 * 48
    engine.model.abort([RunId("0"), RunId("2"), RunId("nobody"), RunId("0")])
    load = engine.model.load()
    assert (load.queued, load.running, load.kv_used_tokens) == (0, 1, 48)
    engine.finish()
    assert {run_id: end.reason for run_id, end in engine.ends.items()} == {"0": "abort", "1": "length", "2": "abort"}
    assert (engine.ends["0"].output_tokens, engine.ends["2"].output_tokens) == (1, 0)


def test_capacity_is_in_whole_blocks_and_a_run_that_fills_it_ends() -> None:
    engine = watched(kv_tokens=330, context_tokens=4000)
    capacity = engine.model.capacity
    assert (capacity.kv_tokens, capacity.max_total_tokens, capacity.max_prompt_tokens) == (320, 320, 319)
    engine.submit(submit("long", prompt(1, 319), 1), submit("grows", prompt(2, 1), 319))
    engine.finish()
    assert {end.reason for end in engine.ends.values()} == {"length"}
    assert watched(kv_tokens=330, context_tokens=100).model.capacity.max_total_tokens == 100


def test_what_is_cached_is_told_with_the_hashes_of_its_tokens() -> None:
    engine = watched(kv_tokens=160, context_tokens=160)
    asked = prompt(1, 60)
    engine.submit(submit("a", asked, 40))
    engine.finish()
    seed = namespace_seed("m", "", "")
    path = hash_path(token_bytes([*asked, *engine.tokens["a"]]), 16, seed)
    # The last of the 100 tokens was never computed: its block is not whole.
    assert engine.changes == [KvStored(b"", path[: 3 * 8]), KvStored(path[2 * 8 : 3 * 8], path[3 * 8 : 6 * 8])]
    assert held_by(engine.model.held()) == held_by(engine.changes)
    engine.submit(submit("b", prompt(2, 150), 1))
    engine.finish()
    assert held_by(engine.changes) == {
        hash_path(token_bytes(prompt(2, 150)), 16, seed)[at : at + 8] for at in range(0, 72, 8)
    }


def test_another_name_finds_nothing_of_what_was_cached() -> None:
    engine = watched()
    engine.submit(submit("before", prompt(1, 100), 1))
    engine.finish()
    engine.model.set_namespace("m")
    assert engine.model.held()
    engine.model.set_namespace("other")
    assert not engine.model.held()
    engine.submit(submit("after", prompt(1, 100), 1))
    engine.finish()
    assert engine.cached["after"] == 0
    path = hash_path(token_bytes(prompt(1, 100)), 16, namespace_seed("other", "", ""))
    assert engine.model.held() == (KvStored(b"", path),)
    assert held_by(engine.changes) == held_by(engine.model.held())


def test_steps_are_sampled_as_they_pass_for_whoever_waits() -> None:
    engine = watched(chunk_tokens=512, speed=10.0)
    engine.submit(submit("a", prompt(1, 700), 3))
    engine.step()
    engine.step()
    engine.submit(submit("b", prompt(2, 300), 1))
    mixed_s = engine.step() / 10
    engine.step()
    decode_s = COST.decode_step_s(1, 702) / 10
    assert engine.samples[1:] == [
        StepSample(188, 700, 188 * 700, 0, 0, COST.prefill_step_s(188, 700) / 10, COST.prefill_step_s(188, 700) / 10),
        StepSample(300, 300, 300 * 300, 1, 701, mixed_s, mixed_s),
        StepSample(0, 0, 0, 1, 702, decode_s, decode_s),
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kv_tokens": 15}, "kv_tokens 15"),
        ({"context_tokens": 1}, "context_tokens 1"),
        ({"queue_policy": "lpm"}, "'lpm'"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        watched(**options)


class RandomLife(Watched):
    """Submits and aborts at random, with prompts that share and repeat."""

    def __init__(self, seed: int, **options: object) -> None:
        super().__init__(sim_model(**options))  # type: ignore[arg-type]
        self.rng = random.Random(seed)
        self.asked: dict[str, Submit] = {}
        self.aborted: set[str] = set()

    def act(self) -> None:
        capacity = self.model.capacity
        for _ in range(self.rng.choice((0, 0, 1, 3))):
            run_id = f"r{len(self.asked)}"
            size = self.rng.randint(1, capacity.max_prompt_tokens)
            shared = self.rng.randint(0, size)
            tokens = prompt(self.rng.randrange(2), size)[:shared] + prompt(self.rng.randrange(100), size - shared)
            room = capacity.max_total_tokens - size
            wanted = self.rng.randint(1, min(room, 60))
            self.asked[run_id] = submit(run_id, tokens, wanted, ignore_eos=self.rng.random() < 0.5)
            self.submit(self.asked[run_id])
        live = [run_id for run_id in self.asked if run_id not in self.ends]
        if live and self.rng.random() < 0.15:
            victim = self.rng.choice(live)
            self.aborted.add(victim)
            self.model.abort([RunId(victim)])


@given(
    seed=st.integers(0, 2**32),
    kv_blocks=st.integers(2, 24),
    block_tokens=st.sampled_from((1, 4, 16)),
    chunk_tokens=st.integers(1, 80),
    max_running=st.integers(1, 6),
    queue_policy=st.sampled_from(("groups", "fcfs")),
)
@settings(max_examples=30, deadline=None)
def test_whatever_happens_blocks_are_kept_and_every_run_ends_once(
    seed: int, kv_blocks: int, block_tokens: int, chunk_tokens: int, max_running: int, queue_policy: str
) -> None:
    life = RandomLife(
        seed,
        block_tokens=block_tokens,
        kv_tokens=kv_blocks * block_tokens,
        chunk_tokens=chunk_tokens,
        max_running=max_running,
        queue_policy=queue_policy,
    )
    for _ in range(60):
        life.act()
        life.step()
    life.finish(20_000)
    assert life.ends.keys() == life.asked.keys()
    assert life.model.load().kv_used_tokens == 0
    assert held_by(life.changes) == held_by(life.model.held())
    for run_id, end in life.ends.items():
        asked = life.asked[run_id]
        stops = () if asked.sampling.ignore_eos else EOS_TOKEN_IDS
        tokens = [int.from_bytes(asked.tokens[at : at + 4], "little") for at in range(0, len(asked.tokens), 4)]
        answer = expected_tokens(tokens, asked.sampling.max_tokens, stops)
        if end.reason == "abort":
            assert run_id in life.aborted
            assert life.tokens[run_id] == answer[: end.output_tokens]
        else:
            assert life.tokens[run_id] == answer
            assert end.reason == ("stop" if answer[-1] in stops else "length")
        assert 0 <= end.cached_tokens < end.prompt_tokens
        assert end.cached_tokens % life.model.capacity.block_tokens == 0
