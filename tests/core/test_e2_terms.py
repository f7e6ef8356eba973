"""The two ways to work out the terms of `e2`, plain floats and arrays, against each other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sights import path, sight

from prebled.core import e2_terms
from prebled.core.cost import CostModel
from prebled.core.e2 import E2
from prebled.core.e2_terms import Weights, costs, few_terms, many_terms
from prebled.core.sharing import Sharing
from prebled.core.sight import TIE_S, Sight
from prebled.settings import CoreSettings

seconds = st.sampled_from([0.0, 0.125, 1.0]) | st.floats(0, 100)
workers = st.fixed_dictionaries(
    {
        "cached": st.sampled_from([0, 64, 640, 960]),
        "wait_s": seconds,
        "until": seconds,
        "decoding": st.integers(0, 50).map(float),
        "requests": st.integers(50, 99).map(float),
        "output_s": seconds,
        "booked": st.integers(0, 5).map(float),
        "token_s": st.sampled_from([1e-3, 2e-3, 3.7e-5]),
        "attends_s": st.sampled_from([0.0, 1e-7, 3e-6]),
    }
)


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    rows = draw(st.lists(workers, min_size=1, max_size=40))
    sharing, hashes = Sharing(), path(1, 15)
    for slot in draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)):
        sharing.book(slot, hashes)
    return sight(
        [row["cached"] for row in rows],
        now=draw(seconds),
        hashes=hashes,
        sharing=sharing,
        costs={
            slot: CostModel(0.0, 0.0, row["token_s"], 0.0, row["attends_s"], 0.0, 0.0, 0.0)
            for slot, row in enumerate(rows)
        },
        **{
            name: [row[name] for row in rows]
            for name in ("wait_s", "until", "decoding", "requests", "output_s", "booked")
        },
    )


@given(sights(), st.floats(0, 1000), st.builds(Weights, *[st.floats(0, 1)] * 5))
def test_floats_and_arrays_agree_to_the_last_digit(seen: Sight, dearness: float, weights: Weights) -> None:
    few, many = few_terms(seen), many_terms(seen)
    assert few.wait_s == list(many.wait_s)
    assert few.prefill_s == list(many.prefill_s)
    assert few.recomputed_s == list(many.recomputed_s)
    assert few.most == many.most
    assert list(few.holders) == list(many.holders) or not few.most  # nobody is asked where nothing is cached
    assert few.least_wait_s == many.least_wait_s
    for one, other in zip(costs(few, seen, dearness, weights), costs(many, seen, dearness, weights), strict=True):
        assert one == list(other)


@settings(max_examples=200)
@given(sights())
def test_the_choice_is_the_same(seen: Sight) -> None:
    choices = []
    for few in (0, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(e2_terms, "FEW", few)
            choices.append(E2(CoreSettings()).choose(seen))
    arrays, floats = choices
    assert isinstance(floats.total_s, list)
    assert floats.total_s == pytest.approx(list(arrays.total_s), rel=1e-12)
    if floats.chosen != arrays.chosen:  # only where a last digit decides whether two are a tie
        assert abs(floats.total_s[floats.chosen] - floats.total_s[arrays.chosen]) <= 2 * TIE_S
    else:
        assert (floats.mode, len(floats.adjusted)) == (arrays.mode, len(arrays.adjusted))
