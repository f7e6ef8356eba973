"""Coefficients of a worker's cost model, fitted to the steps that it reports while it serves.

The form is that of `CostModel.step_s`; what is sought are the eight coefficients with the least relative error over
the newest steps of each size. Rules kept, whatever is reported:

- coefficients are never negative, so costs neither are nor fall with more tokens, and one refit changes none of them by
  more than `MOST_CHANGE` times;
- a step that took much longer than steps of its kind do (a first run, a stall) counts only as far as an ordinary
  error would (Huber's weights, about a robust scale of the errors); what cannot be a step is ignored and counted;
- what the steps cannot tell apart keeps the proportions of the initial model, scaled to the speed of this worker: the
  fit is drawn towards it as if by prior knowledge of each coefficient to within `PRIOR_SPREAD` of its size.

Machines drift faster than a fit should follow: clocks are throttled, neighbours come and go, and every step takes half
as long again for some seconds. So the fit is scaled by the speed of the moment (`pace`): the median, over the `RECENT`
newest steps, of what they took to what the fit has for them, between half and twice.

Steps are kept by size, the newest `KEPT` of each class, so that a thousand equal decode steps do not drive out the one
prefill that was seen before them; a step is forgotten after `MEMORY` others in any case. The same samples in the same
order give the same model. It knows neither time nor workers.

Cost: 2 us to take in a sample, and 2 ms for a refit over 200 steps, which is due after 16 samples, then after another
quarter of those that came, at last every 256: less than 10 us a sample in the long run.
"""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from prebled.core.cost import CostModel
from prebled.messages import StepSample

MOST_CHANGE = 2.0
"""Factor by which one refit may change a coefficient, up or down."""

LEAST_SHARE = 1e-3
"""A coefficient whose term makes up less than this of a mean step is next to nothing: it may also go to 0, or to twice
that."""

PRIOR_SPREAD = 1.0
"""How far, in its own size, a coefficient of the scaled initial model is thought to be off."""

HUBER = 1.345
"""Errors beyond so many standard deviations count less: 95 % efficient where errors are normal."""

LEAST_ERROR, MOST_ERROR = 0.02, 0.5
"""Bounds of the standard deviation that relative errors are taken to have."""

REFIT_SOON, REFIT_EVERY = 16, 256
"""Samples between two refits, at first and later on."""

KEPT = 12
MEMORY = 16_384

RECENT = 16
"""Steps whose speed is that of the moment. Steps of SGLang on a CPU are predicted alike with 8, and worse with 64."""

MOST_PACE = 2.0
"""Factor by which the speed of the moment may differ from the fit's, up or down; the rest is the fit's to learn."""

PACE_STEP = 0.02
"""The least change of the pace that is told: less would not change a decision."""

PRICE_MEMORY = 1 / 256
"""Weight of the newest prefill step in how far prompts reach beyond their new tokens."""

MOST_STEP_S = 100.0
MOST_TOKENS = 2**32

_ROUNDS = 6  # of reweighting, at most; each also decides anew on which piece of the model a step lies
_SETTLED = 1e-3
_TINY = 1e-9  # of a step: below any share that means something
_SIZES = 16  # classes of new tokens, or sequences: powers of two
_REACHES = 4  # classes of context per new token, or per sequence: powers of eight
_BASE, _PREFILL, _DECODE = 1, slice(0, 5), slice(5, 8)  # of the coefficients

Numbers = NDArray[np.float64]


class CostFit:
    """See the module. Starts as `initial`, whose proportions it keeps where the steps say nothing. `samples` and
    `ignored` count what came; `error` is the median relative error of the newest fit over the steps that it rests on,
    None before the first; `pace`: how many times as long as the fit has it steps take at the moment."""

    def __init__(self, initial: CostModel) -> None:
        self._initial = _coefficients(initial)
        self._model = self._present = initial
        self._recent: deque[StepSample] = deque(maxlen=RECENT)
        self._ratios: deque[float] = deque(maxlen=RECENT)  # of what these took to what the fit has for them
        self._steps = _Steps()
        self._next_refit = REFIT_SOON
        self.samples = 0
        self.ignored = 0
        self.error: float | None = None
        self.pace = 1.0
        self._new = self._reached = 0.0  # prompt tokens and contexts of prompts, the older ones forgotten bit by bit

    def model(self) -> CostModel:
        """The newest fit; the initial model until there is one."""
        return self._model

    def present(self) -> CostModel:
        """The newest fit at the speed of the moment: the best guess of what the next step takes."""
        return self._present

    def priced(self) -> CostModel:
        """`present` for those who price prompts by their new tokens (`CostModel.prefill_s`): what a prompt costs
        by its reached context alone is laid on the new tokens, as both came in the steps of late."""
        model = self._present
        if not self._new:
            return model
        token_s = model.prefill_token_s + model.prefill_context_s * self._reached / self._new
        return msgspec.structs.replace(model, prefill_token_s=token_s, prefill_context_s=0.0)

    def add(self, sample: StepSample) -> bool:
        """Take in a step; whether `present` has changed over it. What cannot be a step is ignored and counted."""
        if not _is_step(sample):
            self.ignored += 1
            return False
        self.samples += 1
        self._steps.add(sample)
        if sample.new_tokens:
            self._new += sample.new_tokens - PRICE_MEMORY * self._new
            self._reached += sample.prompt_context_tokens - PRICE_MEMORY * self._reached
        self._recent.append(sample)
        if self.samples < self._next_refit:
            return self.error is not None and self._keep_pace(sample)
        self._next_refit += min(max(self.samples // 4, REFIT_SOON), REFIT_EVERY)
        self._refit()
        self._ratios.extend(map(self._ratio, self._recent))
        self._set_pace(self._newest_pace())
        return True

    def _keep_pace(self, sample: StepSample) -> bool:
        """Hear of one more step; whether that changes the pace."""
        self._ratios.append(self._ratio(sample))
        pace = self._newest_pace()
        if abs(pace / self.pace - 1) < PACE_STEP:
            return False
        self._set_pace(pace)
        return True

    def _ratio(self, sample: StepSample) -> float:
        return sample.step_s / max(expected_s(self._model, sample), _TINY)

    def _newest_pace(self) -> float:
        ordered = sorted(self._ratios)
        return min(max(ordered[len(ordered) // 2], 1 / MOST_PACE), MOST_PACE)

    def _set_pace(self, pace: float) -> None:
        self.pace = pace
        self._present = CostModel(*(pace * coefficient for coefficient in msgspec.structs.astuple(self._model)))

    def _refit(self) -> None:
        steps, seconds = self._steps.newest()
        prior = self._scaled(steps, seconds)
        means = _terms(steps, prior).mean(axis=0)
        # What each coefficient would be if a mean step were spent on its term alone: in these units a coefficient is
        # the share of its term. A term that no step has has no such unit, and none is needed.
        units = np.where(means > 0, seconds.mean() / np.where(means > 0, means, 1.0), np.maximum(prior, _TINY))
        present = _coefficients(self._model)
        mean_s = min(float(_seconds(steps, present).mean()), float(seconds.mean()))
        least = np.where(means > 0, LEAST_SHARE * mean_s / seconds.mean(), 0.0)
        low = np.where(present < least * units, 0.0, present / units / MOST_CHANGE)
        high = MOST_CHANGE * np.maximum(present / units, least)
        # The floor makes the problem one with several valleys; it is looked for from both of its sides.
        starts = (prior, prior * np.where(np.arange(len(prior)) == _BASE, 0.5, 1.0))
        fits = [units * _fitted_shares(steps, seconds, units, start / units, low, high) for start in starts]
        errors = [np.abs(seconds / _seconds(steps, coefficients) - 1) for coefficients in fits]
        best = min(range(len(fits)), key=lambda index: float(np.minimum(errors[index], MOST_ERROR).mean()))
        self.error = float(np.median(errors[best]))
        self._model = CostModel(*fits[best].tolist())

    def _scaled(self, steps: Numbers, seconds: Numbers) -> Numbers:
        """The initial model at the speed of this worker: prefill and decode each scaled by the median of what steps
        took to what they should have taken; if only one kind was seen, both by that."""
        ratios = seconds / _seconds(steps, self._initial)
        prefilling = steps[:, 0] > 0
        prefill, decode = (float(np.median(ratios[kind])) if kind.any() else 0.0 for kind in (prefilling, ~prefilling))
        scaled = self._initial.copy()
        scaled[_PREFILL] *= prefill or decode
        scaled[_DECODE] *= decode or prefill
        return scaled


def expected_s(model: CostModel, sample: StepSample) -> float:
    """What such a step should take."""
    return model.step_s(
        sample.new_tokens, sample.prompt_context_tokens, sample.attention, sample.sequences, sample.context_tokens
    )


def _fitted_shares(
    steps: Numbers, seconds: Numbers, units: Numbers, prior: Numbers, low: Numbers, high: Numbers
) -> Numbers:
    """The shares between `low` and `high` that explain the steps best, drawn towards those of the `prior`.

    Where the prior is far off it must not be clung to: its pull is that of a distribution with a long tail, got by
    taking the spread from the shares of the round before. In the first round it is the mean of what the prior and what
    ignorance would say, so that terms that grow alike get of what is to be explained in proportion to the prior."""
    shares, spread = prior, np.sqrt(prior)
    for _ in range(_ROUNDS):
        terms, expected = _terms(steps, shares * units), _seconds(steps, shares * units)
        errors = np.abs(seconds / expected - 1)
        deviation = min(max(1.4826 * float(np.median(errors)), LEAST_ERROR), MOST_ERROR)
        weights = np.minimum(1, HUBER * deviation / np.maximum(errors, LEAST_ERROR * deviation))
        rows = terms * (units / expected[:, None])
        weighted = (rows * weights[:, None]).T
        pull = (deviation / np.clip(spread, LEAST_SHARE, 1.0)) ** 2
        gram = weighted @ rows
        diagonal = np.einsum("ii->i", gram)
        diagonal += pull + _TINY * diagonal  # the latter so that it can be solved, whatever the steps were
        before = shares
        shares = bounded_least_squares(gram, weighted @ (seconds / expected) + pull * prior, low, high)
        if np.abs(shares - before).max() < _SETTLED:
            break
        spread = PRIOR_SPREAD * np.maximum(shares, prior)
    return shares


class _Steps:
    """The newest steps of each class. A row holds what a step computed, in the order of `StepSample`."""

    def __init__(self) -> None:
        places = 2 * _SIZES * _REACHES * KEPT
        self._rows: Numbers = np.zeros((places, 5))
        self._seconds: Numbers = np.zeros(places)
        self._numbers: NDArray[np.int64] = np.full(places, -MEMORY)
        self._counts = [0] * (2 * _SIZES * _REACHES)
        self._added = 0

    def add(self, sample: StepSample) -> None:
        new, context = sample.new_tokens, sample.prompt_context_tokens
        if not new:
            new, context = sample.sequences, sample.context_tokens >> 7
        size = min(new.bit_length(), _SIZES) - 1
        reach = min((context // new).bit_length() // 3, _REACHES - 1)
        kind = (size + _SIZES * (not sample.new_tokens)) * _REACHES + reach
        place = kind * KEPT + self._counts[kind] % KEPT
        self._counts[kind] += 1
        self._rows[place] = (
            sample.new_tokens,
            sample.prompt_context_tokens,
            sample.attention,
            sample.sequences,
            sample.context_tokens,
        )
        self._seconds[place] = sample.step_s
        self._numbers[place] = self._added
        self._added += 1

    def newest(self) -> tuple[Numbers, Numbers]:
        """What they computed, one row each, and their seconds."""
        kept = self._numbers >= max(self._added - MEMORY, 0)
        return self._rows[kept], self._seconds[kept]


def _coefficients(model: CostModel) -> Numbers:
    return np.array(msgspec.structs.astuple(model))


def _terms(steps: Numbers, coefficients: Numbers) -> Numbers:
    """What each coefficient is multiplied by in each step, one row per step: `CostModel.step_s` is piecewise linear,
    and the given coefficients tell on which piece a step lies."""
    new, reached, attention, sequences, _ = steps.T
    floor, base, token, reached_s, attention_s, decode_base = coefficients[:6]
    line = base + token * new
    prefill = np.maximum(floor, line) + reached_s * reached + attention_s * attention
    prefills = (new > 0) & ((sequences == 0) | (prefill >= decode_base))
    terms = np.empty((len(steps), len(coefficients)))
    terms[:, 0] = prefills & (line < floor)
    terms[:, 1] = prefills & (line >= floor)
    terms[:, 2] = terms[:, 1] * new
    terms[:, 3:5] = steps[:, 1:3] * prefills[:, None]
    terms[:, 5] = ~prefills
    terms[:, 6:8] = steps[:, 3:5]
    return terms


def _seconds(steps: Numbers, coefficients: Numbers) -> Numbers:
    """What the steps should take, more than nothing."""
    seconds: Numbers = np.maximum(_terms(steps, coefficients) @ coefficients, _TINY)
    return seconds


def bounded_least_squares(gram: Numbers, moment: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """The x between `low` and `high` with the least x gram x / 2 - moment x, for a positive definite gram.

    What leaves the bounds is put on them, the rest solved for again, and what the slope leads back inside is freed,
    until nothing changes. That takes a few turns; should it go round in a circle, the last x is within the bounds all
    the same."""
    x: Numbers = np.asarray(np.linalg.solve(gram, moment), np.float64)
    if (x >= low).all() and (x <= high).all():
        return x
    x = np.clip(x, low, high)
    for _ in range(2 * len(x)):
        slope = gram @ x - moment
        held = ((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0))
        free = ~held
        solved = x.copy()
        solved[free] = np.linalg.solve(gram[free][:, free], moment[free] - gram[free][:, held] @ x[held])
        before, x = x, np.clip(solved, low, high)
        if np.abs(x - before).max() <= _TINY:
            break
    return x


def _is_step(sample: StepSample) -> bool:
    """Whether such a step can have been."""
    new, reached = sample.new_tokens, sample.prompt_context_tokens
    return (
        0 < sample.step_s <= MOST_STEP_S
        and 0 <= new <= reached <= MOST_TOKENS
        and new <= sample.attention <= new * reached
        and 0 <= sample.sequences <= sample.context_tokens <= MOST_TOKENS
        and (new > 0) == (reached > 0)
        and (sample.sequences > 0) == (sample.context_tokens > 0)
        and (new > 0 or sample.sequences > 0)
    )
