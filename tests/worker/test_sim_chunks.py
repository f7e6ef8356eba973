"""The simulated engine where a step has no room for all: prompts cut into chunks, with and without mixed steps."""

from __future__ import annotations

import pytest
from sim_runs import EOS_TOKEN_IDS, expected_tokens, prompt, submit, watched


def test_long_prompts_are_cut_and_decoding_goes_on_beside_them() -> None:
    engine = watched(chunk_tokens=64)
    engine.submit(submit("short", prompt(1, 10), 30))
    engine.step()
    engine.submit(submit("long", prompt(2, 200), 2), submit("behind", prompt(3, 5), 2))
    before = len(engine.tokens["short"])
    for step in range(1, 4):
        engine.step()
        assert len(engine.tokens["short"]) == before + step, "decoding waits for a prompt"
        assert not engine.tokens["long"]
        assert engine.model.load().queued == 1, "nothing is left of the budget for the run behind"
    engine.step()  # 3 * 63 + 11 = 200: the rest of the budget is for the next
    assert len(engine.tokens["long"]) == len(engine.tokens["behind"]) == 1


def test_without_mixed_chunks_prompts_go_first_and_nobody_decodes_beside_them() -> None:
    engine = watched(mixed_chunks=False, chunk_tokens=32)
    engine.submit(submit("first", prompt(1, 20), 10))
    engine.step()
    engine.step()
    assert len(engine.tokens["first"]) == 2
    engine.submit(submit("second", prompt(2, 80), 3))
    for _ in range(3):  # 32, 32 and 16 tokens
        engine.step()
    assert (len(engine.tokens["first"]), len(engine.tokens["second"])) == (2, 1)
    engine.finish()
    assert [(one.new_tokens, one.sequences) for one in engine.samples[:6]] == [
        (20, 0),
        (0, 1),
        (32, 0),
        (32, 0),
        (16, 0),
        (0, 2),
    ]
    for run_id, tokens, made in (("first", prompt(1, 20), 10), ("second", prompt(2, 80), 3)):
        assert engine.tokens[run_id] == expected_tokens(tokens, made)


@pytest.mark.parametrize("queue_policy", ["groups", "fcfs"])
def test_without_mixed_chunks_a_full_cache_loses_nothing(queue_policy: str) -> None:
    settings_of = {"mixed_chunks": False, "kv_tokens": 192, "context_tokens": 192, "chunk_tokens": 48, "max_running": 6}
    engine = watched(queue_policy=queue_policy, **settings_of)
    prompts = {str(seed): prompt(seed % 6, 40 + 8 * (seed % 5)) for seed in range(12)}
    engine.submit(*(submit(run_id, tokens, 60, ignore_eos=False) for run_id, tokens in prompts.items()))
    engine.finish()
    assert engine.model.retractions > 0
    for run_id, tokens in prompts.items():
        assert engine.tokens[run_id] == expected_tokens(tokens, 60, EOS_TOKEN_IDS)
    assert all(not (one.new_tokens and one.sequences) for one in engine.samples)
