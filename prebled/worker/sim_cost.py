"""How long simulated steps take: one forward pass over chunks of prompts and decoding runs together.

It knows one thing about the cost model beyond its methods: a step that only decodes is linear in the context.
"""

from __future__ import annotations

from prebled.core.cost import CostModel
from prebled.messages import StepSample
from prebled.worker.sim_run import StepPlan


def step_seconds(cost: CostModel, plan: StepPlan) -> float:
    """Seconds of one planned, not yet committed step.

    The pass is paid once: the linear part for all prompt tokens in it, attention for each prompt by its own context,
    and on top what each decoding run adds. Never less than decoding alone.
    """
    decoding, decode_context = plan.sequences, plan.context_tokens
    decode_s = cost.decode_step_s(decoding, decode_context)
    if not plan.prefills:
        return decode_s
    new_tokens = sum(tokens for _, tokens in plan.prefills)
    prefill_s = max(cost.prefill_floor_s, cost.prefill_base_s + cost.prefill_token_s * new_tokens)
    for run, tokens in plan.prefills:
        context = run.computed + tokens
        prefill_s += context * (cost.prefill_context_s + cost.prefill_token_context_s * tokens)
    return max(decode_s, prefill_s + cost.decode_sequence_s * decoding + cost.decode_context_s * decode_context)


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
    new_tokens = prompt_context = attention = 0
    for run, tokens in plan.prefills:
        context = run.computed + tokens
        new_tokens += tokens
        prompt_context += context
        attention += tokens * context
    return StepSample(new_tokens, prompt_context, attention, plan.sequences, plan.context_tokens, step_s, step_s)
