"""How long a simulated step takes: one forward pass over chunks of prompts and decoding runs together."""

from __future__ import annotations

from prebled.core.cost import CostModel
from prebled.worker.sim_run import StepPlan


def step_seconds(cost: CostModel, plan: StepPlan) -> float:
    """Seconds of a planned, not yet committed step.

    The pass is paid once: the linear part for all prompt tokens in it, attention for each prompt by its own context,
    and on top what each decoding run adds. Never less than decoding alone.
    """
    decoding = len(plan.decodes)
    decode_context = sum(run.length for run in plan.decodes)
    decode_s = cost.decode_step_s(decoding, decode_context)
    if not plan.prefills:
        return decode_s
    new_tokens = sum(tokens for _, tokens in plan.prefills)
    prefill_s = max(cost.prefill_floor_s, cost.prefill_base_s + cost.prefill_token_s * new_tokens)
    for run, tokens in plan.prefills:
        context = run.computed + tokens
        prefill_s += context * (cost.prefill_context_s + cost.prefill_token_context_s * tokens)
    return max(decode_s, prefill_s + cost.decode_sequence_s * decoding + cost.decode_context_s * decode_context)
