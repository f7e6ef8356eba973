"""Durations of simulated steps: a jump takes what its steps take, one after another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_runs import COST

from prebled.worker.sim_cost import jump_seconds, step_seconds, steps_until
from prebled.worker.sim_run import StepPlan


@given(st.integers(1, 256), st.integers(1, 200_000), st.integers(1, 40), st.floats(-0.1, 1.2))
@settings(max_examples=50, deadline=None)
def test_a_jump_takes_the_sum_of_its_steps(sequences: int, context_tokens: int, steps: int, share: float) -> None:
    plan = StepPlan([], sequences, context_tokens, steps)
    ends_at = [0.0]
    for step in range(steps):
        single = StepPlan([], sequences, context_tokens + step * sequences, 1)
        ends_at.append(ends_at[-1] + step_seconds(COST, single))
    assert [jump_seconds(COST, plan, made) for made in range(steps + 1)] == pytest.approx(ends_at)
    seconds = share * ends_at[-1]
    enough = steps_until(COST, plan, seconds)
    assert 1 <= enough <= steps
    assert enough == steps or jump_seconds(COST, plan, enough) >= seconds
    assert enough == 1 or jump_seconds(COST, plan, enough - 1) < seconds
