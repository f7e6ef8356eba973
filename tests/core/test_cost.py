"""The cost model: numbers worked by hand, and that it is never negative nor falls with more tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebled.core.cost import PROFILES, CostModel, profile
from prebled.errors import SettingsError

SIMPLE = CostModel(
    prefill_floor_s=0.02,
    prefill_base_s=0.01,
    prefill_token_s=1e-3,
    prefill_context_s=1e-4,
    prefill_token_context_s=1e-6,
    decode_base_s=0.03,
    decode_sequence_s=2e-3,
    decode_context_s=1e-5,
)
tokens = st.integers(0, 200_000)
names = st.sampled_from(sorted(PROFILES))


def test_prefill_by_hand() -> None:
    # linear max(.02, .01 + .1) + context .05 + 100 x 500 pairs at 1e-6
    assert SIMPLE.prefill_step_s(100, 500) == pytest.approx(0.11 + 0.05 + 0.05)
    assert SIMPLE.prefill_step_s(5, 5) == pytest.approx(0.02 + 5e-4 + 25e-6)  # the floor
    assert SIMPLE.prefill_step_s(0, 500) == 0
    # work: 100 tokens at 1e-3, each seeing 450 others on average
    assert SIMPLE.prefill_s(100.0, 500) == pytest.approx(0.1 + 100 * 450e-6)


def test_decode_by_hand() -> None:
    assert SIMPLE.decode_step_s(4, 1000) == pytest.approx(0.03 + 0.008 + 0.01)
    assert SIMPLE.decode_step_s(0, 1000) == 0
    assert SIMPLE.decode_s(10, 1000) == pytest.approx(10 * (2e-3 + 0.01))


def test_prefill_of_many_workers_at_once_is_that_of_each() -> None:
    new = np.array([0.0, 1.0, 64.0, 5000.0])
    together = SIMPLE.prefill_s(new, 5000)
    assert together.tolist() == [SIMPLE.prefill_s(float(one), 5000) for one in new]


@given(names, tokens, tokens, tokens)
def test_never_negative_never_less_for_more(name: str, new: int, more: int, before: int) -> None:
    cost = PROFILES[name]
    context = before + new
    assert 0 <= cost.prefill_step_s(new, context) <= cost.prefill_step_s(new + more, context + more)
    assert cost.prefill_step_s(new, context) <= cost.prefill_step_s(new, context + more)
    assert 0 <= cost.prefill_s(float(new), context) <= cost.prefill_s(float(new + more), context + more)
    assert 0 <= cost.prefill_s(float(new), context) <= cost.prefill_s(float(new), context + more)
    assert cost.prefill_s(float(new), new + more + before) <= cost.prefill_s(float(new + more), new + more + before)
    assert 0 <= cost.decode_step_s(new, context) <= cost.decode_step_s(new + more, context + more)
    assert 0 <= cost.decode_s(new, context) <= cost.decode_s(new + more, context)


@pytest.mark.parametrize(
    ("new", "milliseconds"), [(512, 66.7), (1024, 128), (1835, 240), (2285, 301), (3871, 521), (9865, 1464)]
)
def test_the_a6000_profile_is_near_the_released_regression(new: int, milliseconds: float) -> None:
    assert PROFILES["mistral-7b-a6000"].prefill_step_s(new, new) * 1000 == pytest.approx(milliseconds, rel=0.04)


def test_the_negative_range_of_the_released_regression_is_gone() -> None:
    cost = PROFILES["mistral-7b-a6000"]  # 383 tokens were -16 ms there
    assert 0.022 <= cost.prefill_step_s(192, 192) < cost.prefill_step_s(383, 383) < cost.prefill_step_s(384, 384)


def test_four_h100_take_0_55_of_the_times_of_two() -> None:
    two, four = profile("llama-3-70b-h100"), profile("llama-3-70b-4xh100")
    assert four.prefill_step_s(2048, 10_000) == pytest.approx(0.55 * two.prefill_step_s(2048, 10_000))
    assert four.decode_step_s(20, 100_000) == pytest.approx(0.55 * two.decode_step_s(20, 100_000))


def test_bad_coefficients_and_unknown_profiles_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"decode_base_s = -1"):
        CostModel(0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0)
    with pytest.raises(SettingsError, match=r"'abacus'.*mistral-7b-a6000"):
        profile("abacus")
