"""The fit of a worker's costs: what it finds, what it withstands, and the bounds it keeps whatever it is told."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebled.core.cost import PROFILES, CostModel
from prebled.core.cost_fit import (
    LEAST_SHARE,
    MOST_CHANGE,
    MOST_PACE,
    RECENT,
    REFIT_EVERY,
    CostFit,
    bounded_least_squares,
    expected_s,
)
from prebled.messages import StepSample

NAMES = CostModel.__struct_fields__
A6000, TINY = PROFILES["mistral-7b-a6000"], PROFILES["tiny-cpu"]
# A floor that holds up steps of less than 250 tokens, and terms of every kind that matter somewhere.
TRUTH = CostModel(0.010, 0.005, 2e-5, 4e-7, 2e-9, 0.012, 1e-4, 2e-7)


def step(prompts: list[tuple[int, int]], lengths: list[int], seconds: float = 1.0) -> StepSample:
    """`prompts`: new tokens and reached context of each; `lengths`: contexts of the decoding sequences."""
    return StepSample(
        sum(new for new, _ in prompts),
        sum(reached for _, reached in prompts),
        sum(new * reached for new, reached in prompts),
        len(lengths),
        sum(lengths),
        seconds,
        seconds,
    )


def some_step(rng: random.Random) -> StepSample:
    """Prefill of a few prompts, partly cached, decode, or both."""
    prompts, lengths = [], []
    kind = rng.random()
    if kind < 0.5:
        for _ in range(rng.randint(1, 4)):
            new = int(2 ** rng.uniform(3, 11))
            prompts.append((new, new + rng.choice([0, 0, 64 * rng.randint(1, 100)])))
    if kind > 0.4:
        longest = int(2 ** rng.uniform(6, 14))
        lengths = [rng.randint(longest // 2, longest) for _ in range(int(2 ** rng.uniform(0, 6)))]
    return step(prompts, lengths)


def measured(model: CostModel, rng: random.Random, steps: int, *, noise: float, outliers: float) -> list[StepSample]:
    """Random steps as this model has them, but for noise and for some that stalled."""
    samples = []
    for _ in range(steps):
        sample = some_step(rng)
        seconds = expected_s(model, sample) * math.exp(rng.gauss(0, noise))
        if rng.random() < outliers:
            seconds *= rng.uniform(3, 50)
        samples.append(msgspec.structs.replace(sample, step_s=seconds))
    return samples


def fitted(initial: CostModel, samples: list[StepSample]) -> CostFit:
    fit = CostFit(initial)
    for sample in samples:
        fit.add(sample)
    return fit


def median_error(model: CostModel, samples: list[StepSample]) -> float:
    return float(np.median([abs(expected_s(model, sample) / sample.step_s - 1) for sample in samples]))


@pytest.mark.parametrize("initial", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_coefficients_among_noise_and_outliers(initial: CostModel, seed: int) -> None:
    rng = random.Random(seed)
    fit = fitted(initial, measured(TRUTH, rng, 4000, noise=0.05, outliers=0.05))
    assert median_error(fit.model(), measured(TRUTH, rng, 1000, noise=0.0, outliers=0.0)) < 0.03
    for name in NAMES:
        assert getattr(fit.model(), name) == pytest.approx(getattr(TRUTH, name), rel=0.25), name
    assert fit.error is not None
    assert 0.02 < fit.error < 0.08
    assert fit.ignored == 0


def test_follows_a_machine_that_becomes_slower() -> None:
    rng = random.Random(1)
    fit = fitted(TRUTH, measured(TRUTH, rng, 1000, noise=0.05, outliers=0.05))
    slower = CostModel(*(1.6 * getattr(TRUTH, name) for name in NAMES))
    for sample in measured(slower, rng, 6000, noise=0.05, outliers=0.05):
        fit.add(sample)
    assert median_error(fit.model(), measured(slower, rng, 500, noise=0.0, outliers=0.0)) < 0.05


def test_the_speed_of_the_moment_is_seen_in_a_few_steps_and_taken_back_as_soon() -> None:
    """The fit itself hardly moves meanwhile, and a step that stalls does not count as a change of speed."""
    rng = random.Random(5)
    fit = fitted(TRUTH, measured(TRUTH, rng, 2000, noise=0.02, outliers=0.02))
    probes = measured(TRUTH, rng, 300, noise=0.0, outliers=0.0)
    for factor in (1.5, 1.0, 0.7, 1.0):
        scaled = CostModel(*(factor * getattr(TRUTH, name) for name in NAMES))
        for sample in measured(scaled, rng, RECENT, noise=0.02, outliers=0.02):
            fit.add(sample)
        assert fit.pace == pytest.approx(factor, rel=0.05)
        assert median_error(fit.model(), probes) < 0.05
        assert expected_s(fit.present(), probes[0]) == pytest.approx(fit.pace * expected_s(fit.model(), probes[0]))


@pytest.mark.parametrize(("factor", "pace"), [(50, MOST_PACE), (0.02, 1 / MOST_PACE)])
def test_the_speed_of_the_moment_is_bounded(factor: float, pace: float) -> None:
    rng = random.Random(6)
    fit = fitted(TRUTH, measured(TRUTH, rng, 2000, noise=0.02, outliers=0.0))
    scaled = CostModel(*(factor * getattr(TRUTH, name) for name in NAMES))
    for sample in measured(scaled, rng, RECENT, noise=0.02, outliers=0.0):
        fit.add(sample)
    assert fit.pace == pace


def test_what_the_steps_do_not_tell_keeps_its_proportions() -> None:
    """Only one sequence ever decodes: that the worker is three times as slow is all that can be seen."""
    rng = random.Random(2)
    lengths = [rng.randint(100, 300) for _ in range(2000)]
    samples = [step([], [length], 3 * A6000.decode_step_s(1, length)) for length in lengths]
    model = fitted(A6000, samples).model()
    for name in NAMES:
        assert getattr(model, name) == pytest.approx(3 * getattr(A6000, name), rel=0.1), name


def test_a_thousand_decode_steps_do_not_drive_out_what_prefill_told() -> None:
    rng = random.Random(3)
    fit = fitted(A6000, measured(TRUTH, rng, 2000, noise=0.02, outliers=0.0))
    prefills = [step([(new, new)], []) for new in (100, 500, 1000, 2000)]
    before = [expected_s(fit.model(), prefill) for prefill in prefills]
    for _ in range(5000):
        fit.add(step([], [500], TRUTH.decode_step_s(1, 500)))
    assert [expected_s(fit.model(), prefill) for prefill in prefills] == pytest.approx(before, rel=0.05)


def test_the_cost_of_reached_context_is_priced_by_new_tokens() -> None:
    """Prompts reach four times as far as they are new: what they cost is the same, told in new tokens."""
    samples = [step([(new, 4 * new)], [], 0.001 * new) for new in [100, 200, 400, 800] * 20]
    fit = fitted(TRUTH, samples)
    model, priced = fit.present(), fit.priced()
    assert model.prefill_context_s > 0
    assert priced.prefill_context_s == 0
    assert priced.prefill_token_s == pytest.approx(model.prefill_token_s + 4 * model.prefill_context_s)
    for name in set(NAMES) - {"prefill_token_s", "prefill_context_s"}:
        assert getattr(priced, name) == getattr(model, name)
    assert CostFit(A6000).priced() == A6000


def test_nothing_changes_before_there_are_enough_steps() -> None:
    fit = CostFit(TINY)
    assert not any(fit.add(step([], [10], 0.5)) for _ in range(15))
    assert fit.model() is TINY
    assert fit.error is None
    assert fit.add(step([], [10], 0.5))
    changes = [fit.add(step([], [10], 0.5)) for _ in range(10 * REFIT_EVERY)]
    assert 20 <= sum(changes) <= 24


def test_one_refit_changes_a_coefficient_by_a_bounded_factor() -> None:
    """The machine is a hundred times as slow as was thought, and then as fast as was thought."""
    rng = random.Random(4)
    slow = CostModel(*(100 * getattr(TRUTH, name) for name in NAMES))
    samples = measured(slow, rng, 3000, noise=0.1, outliers=0.1) + measured(TRUTH, rng, 3000, noise=0.1, outliers=0.1)
    fit, models = CostFit(TRUTH), [TRUTH]
    models += [fit.model() for sample in samples if fit.add(sample)]
    assert len(models) > 20
    probes = [some_step(rng) for _ in range(300)]

    def mean_s(model: CostModel) -> float:
        return float(np.mean([expected_s(model, probe) for probe in probes]))

    def is_small(model: CostModel, name: str) -> bool:
        """Whether this coefficient has next to no part in costs; the fit's own steps are of other sizes than these."""
        alone = CostModel(**{other: getattr(model, name) * (other == name) for other in NAMES})
        return mean_s(alone) < 5 * LEAST_SHARE * mean_s(model)

    for before, after in pairwise(models):
        assert 0.49 < mean_s(after) / mean_s(before) < 2.05
        for name in NAMES:
            assert getattr(after, name) <= MOST_CHANGE * getattr(before, name) * 1.0001 or is_small(after, name)
            assert getattr(before, name) <= MOST_CHANGE * getattr(after, name) * 1.0001 or is_small(before, name)
    assert min(median_error(model, samples[:3000]) for model in models) < 0.15
    assert median_error(models[-1], samples[3000:]) < 0.15


garbage = st.builds(
    StepSample,
    new_tokens=st.integers(-(2**63), 2**63 - 1),
    prompt_context_tokens=st.integers(-(2**63), 2**63 - 1),
    attention=st.integers(-(2**63), 2**63 - 1),
    sequences=st.integers(-(2**63), 2**63 - 1),
    context_tokens=st.integers(-(2**63), 2**63 - 1),
    step_s=st.floats(),
    model_s=st.floats(),
)
prompts = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 100_000)), max_size=3)
possible = st.builds(
    lambda news, lengths, seconds: step([(new, new + cached) for new, cached in news], lengths, seconds),
    prompts,
    st.lists(st.integers(1, 100_000), max_size=5),
    st.floats(1e-9, 100, exclude_min=True),
)


@given(st.sampled_from(list(PROFILES.values())), st.lists(possible | garbage, min_size=1, max_size=20), st.randoms())
def test_whatever_is_reported_costs_stay_costs(
    initial: CostModel, samples: list[StepSample], rng: random.Random
) -> None:
    """Never negative, nor nan, nor infinite (`CostModel` refuses those), never less for more; all that came counts."""
    fit = CostFit(initial)
    for _ in range(70):
        before = fit.present()
        changed = fit.add(rng.choice(samples))
        assert changed == (fit.present() is not before)
    assert fit.samples + fit.ignored == 70
    model = fit.present()
    costs = [expected_s(model, step([(new, new + 100)], [500] * 3)) for new in (1, 10, 100, 1000, 10_000)]
    assert costs == sorted(costs)
    assert model.prefill_s(100, 200) >= 0
    assert model.decode_s(10, 200) >= 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, -math.inf, math.nan, 1e6])
def test_impossible_durations_are_ignored_and_counted(seconds: float) -> None:
    fit = fitted(TINY, [step([], [10], seconds)] * 100)
    assert (fit.samples, fit.ignored, fit.model()) == (0, 100, TINY)


@pytest.mark.parametrize(
    "counts",
    [(0, 0, 0, 0, 0), (-1, 5, 5, 0, 0), (5, 4, 20, 0, 0), (5, 5, 26, 0, 0), (5, 5, 4, 0, 0), (0, 5, 0, 1, 5),
     (0, 0, 0, 3, 2), (0, 0, 0, -1, 2), (0, 0, 0, 0, 2), (2**40, 2**40, 2**80, 0, 0)],
)  # fmt: skip
def test_impossible_work_is_ignored_and_counted(counts: tuple[int, int, int, int, int]) -> None:
    fit = fitted(TINY, [StepSample(*counts, step_s=0.01, model_s=0.01)])
    assert (fit.samples, fit.ignored) == (0, 1)


def test_the_same_steps_give_the_same_model() -> None:
    samples = measured(TRUTH, random.Random(5), 700, noise=0.1, outliers=0.05)
    assert fitted(TINY, samples).model() == fitted(TINY, samples).model()


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_least_squares_within_bounds_is_where_no_slope_leads_on(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.exponential(1, (20, size)) * rng.integers(0, 2, (20, size))
    gram = rows.T @ rows + 0.01 * np.eye(size)
    low = rng.uniform(0, 0.3, size) * rng.integers(0, 2, size)
    high = low + rng.uniform(0.01, 1, size)
    x = bounded_least_squares(gram, rows.T @ rng.normal(1, 1, 20), low, high)
    assert (x >= low).all()
    assert (x <= high).all()
