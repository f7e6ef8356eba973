"""How long simulated steps take: one forward pass over chunks of prompts and decoding runs together.

It knows one thing about the cost model beyond its methods: a step that only decodes is linear in the context.
"""

from __future__ import annotations

from prebled.core.cost import CostModel
from prebled.messages import StepSample
from prebled.worker.sim_run import StepPlan


def step_seconds(cost: CostModel, plan: StepPlan) -> float:
    """Seconds of one planned, not yet committed step: `CostModel.step_s` of what it computes."""
    return cost.step_s(*_computed(plan))


def jump_seconds(cost: CostModel, plan: StepPlan, steps: int) -> float:
    """Seconds of the first `steps` steps of a plan that only decodes. Every step adds a token to each context, so they
    are an arithmetic series. Rises with `steps`."""
    decoding = plan.sequences
    first_s = cost.decode_step_s(decoding, plan.context_tokens)
    last_s = cost.decode_step_s(decoding, plan.context_tokens + decoding * (steps - 1))
    return steps * (first_s + last_s) / 2


def steps_until(cost: CostModel, plan: StepPlan, seconds: float) -> int:
    """After how many of the planned steps at least `seconds` have passed; all of them if they take no longer."""
    fewest, enough = 0, plan.steps
    while enough - fewest > 1:
        middle = (fewest + enough) // 2
        if jump_seconds(cost, plan, middle) >= seconds:
            enough = middle
        else:
            fewest = middle
    return enough


def step_sample(plan: StepPlan, step_s: float) -> StepSample:
    """What an engine would report of a planned, not yet committed step that takes so long."""
    return StepSample(*_computed(plan), step_s, step_s)


def _computed(plan: StepPlan) -> tuple[int, int, int, int, int]:
    """The first five fields of `StepSample`."""
    new_tokens = prompt_context = attention = 0
    for run, tokens in plan.prefills:
        context = run.computed + tokens
        new_tokens += tokens
        prompt_context += context
        attention += tokens * context
    return new_tokens, prompt_context, attention, plan.sequences, plan.context_tokens
