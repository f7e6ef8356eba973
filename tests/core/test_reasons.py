"""The candidates of a placement are written out late, and are those of the moment of the decision."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_scripts import arrived, place, ready, scheduler, tokens

from prebled.core.decisions import Candidate, Place, Placed, Placement
from prebled.core.events import FirstToken, RequestArrived, RequestFinished
from prebled.core.policies import POLICIES
from prebled.core.reasons import KEPT_WHOLE, SHOWN, weighed
from prebled.core.sight import Choice
from prebled.core.trace import TraceStep, decode_step, encode_step
from prebled.core.types import RequestId, WorkerId


@pytest.mark.parametrize("workers", [3, KEPT_WHOLE + 6])
@pytest.mark.parametrize("policy", POLICIES)
def test_written_out_at_the_end_they_are_what_they_were_at_once(policy: str, workers: int) -> None:
    at_once, late = scheduler(policy), scheduler(policy)
    kept: list[tuple[tuple[Candidate, ...], Placed]] = []
    for number in range(workers):
        at_once.handle(ready(f"w{number}"), 0.0)
        late.handle(ready(f"w{number}"), 0.0)
    for number in range(40):
        event = arrived(f"r{number}", tokens((number % 3, 640), (number + 9, 64 * (number % 7))))
        now = number / 10
        kept.append((place(at_once, event, now).placement.candidates, place(late, event, now).placement))
        for subject in (at_once, late):
            if number % 2:
                subject.handle(FirstToken(RequestId(f"r{number}"), 0), now)
            if number % 3 == 1:
                subject.handle(RequestFinished(RequestId(f"r{number}"), 7), now)
    assert [placed.candidates for _, placed in kept] == [candidates for candidates, _ in kept]


def test_of_many_candidates_those_that_are_shown_are_kept() -> None:
    count = KEPT_WHOLE + 40
    chance = np.random.default_rng(1)
    ids = [WorkerId(f"w{number}") for number in range(count)]
    for _ in range(50):
        total_s = chance.integers(0, 12, count) / 4  # with ties
        choice = Choice(int(chance.integers(count)), "explore", chance.random(count), chance.random(count), total_s)
        cached_tokens = chance.integers(0, 9, count).astype(float)
        kept = weighed(ids, cached_tokens, choice)
        assert len(kept.ids) == SHOWN
        order = sorted(range(count), key=lambda index: (total_s[index], index))[:SHOWN]
        if choice.chosen not in order:
            order[-1] = choice.chosen
        assert kept.candidates() == tuple(
            Candidate(
                ids[index],
                int(cached_tokens[index]),
                choice.load_s[index],
                0.0,
                choice.prefill_s[index],
                total_s[index],
            )
            for index in order
        )


def test_what_is_decided_equals_what_was_recorded_of_it() -> None:
    subject = scheduler()
    subject.handle(ready("w0"), 0.0)
    event = arrived("a", tokens((1, 640)))
    assert isinstance(event, RequestArrived)
    placed = place(subject, event)
    step = decode_step(encode_step(TraceStep(0.0, event, [placed])))
    [again] = step.decisions
    assert again == placed
    assert isinstance(again, Place)
    assert isinstance(again.placement.written_out(), Placement)
    assert again.placement != Placed(WorkerId("w0"), "explore", "e2", 0, 640)
    assert "w0" in repr(placed.placement)
    explanation = subject.explanation(RequestId("a"))
    assert explanation is not None
    assert explanation.placement == placed.placement.written_out()
