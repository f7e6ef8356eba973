"""What work costs, in seconds of one worker's time: linear-quadratic models of prefill and decode.

Prefill of T new tokens over a context of C (cached and new ones) takes max(floor, base + a T) + b C + q T C; decode of
a batch of N sequences with C tokens of context between them takes base + n N + c C. Coefficients are never negative, so
costs are not either and never fall with more tokens. (Preble, section 3.2, estimates both by offline regressions; the
released ones have a negative range, which is not taken over.)
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from prebled.errors import SettingsError

Tokens = TypeVar("Tokens", float, NDArray[np.float64])
"""One number, or one for each of many workers."""


class CostModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coefficients in seconds. The marginal costs (`prefill_s`, `decode_s`) leave out what a step costs anyway."""

    prefill_floor_s: float
    prefill_base_s: float
    prefill_token_s: float
    prefill_context_s: float
    prefill_token_context_s: float
    decode_base_s: float
    decode_sequence_s: float
    decode_context_s: float

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise SettingsError(f"cost coefficient {name} = {value!r}: not a number from 0 up", param=name)

    def prefill_step_s(self, new_tokens: int, context_tokens: int) -> float:
        """A whole step that computes `new_tokens` up to a context of `context_tokens` (new ones included)."""
        if new_tokens <= 0:
            return 0.0
        linear = max(self.prefill_floor_s, self.prefill_base_s + self.prefill_token_s * new_tokens)
        attention = self.prefill_context_s * context_tokens + self.prefill_token_context_s * new_tokens * context_tokens
        return linear + attention

    def prefill_s(self, new_tokens: Tokens, context_tokens: float) -> Tokens:
        """What `new_tokens` more add to the prefill work of a busy worker, on a context that grows to
        `context_tokens`."""
        before = context_tokens - new_tokens
        return prefill_seconds(before, context_tokens, self.prefill_token_s, 0.5 * self.prefill_token_context_s)

    def decode_step_s(self, sequences: int, context_tokens: int) -> float:
        """A step that makes one token for each of `sequences`."""
        if sequences <= 0:
            return 0.0
        return self.decode_base_s + self.decode_sequence_s * sequences + self.decode_context_s * context_tokens

    def step_s(
        self, new_tokens: int, prompt_context_tokens: int, attention: int, sequences: int, context_tokens: int
    ) -> float:
        """A step of prompts and decoding sequences together; the numbers are those of `messages.StepSample`.

        The pass is paid once: the linear part for all new tokens, attention for each prompt by its own context, and on
        top what each sequence adds. Never less than decoding alone."""
        decode_s = self.decode_step_s(sequences, context_tokens)
        if new_tokens <= 0:
            return decode_s
        prefill_s = max(self.prefill_floor_s, self.prefill_base_s + self.prefill_token_s * new_tokens)
        prefill_s += self.prefill_context_s * prompt_context_tokens + self.prefill_token_context_s * attention
        return max(decode_s, prefill_s + self.decode_sequence_s * sequences + self.decode_context_s * context_tokens)

    def decode_s(self, output_tokens: Tokens, context_tokens: Tokens) -> Tokens:
        """What making `output_tokens` for one more sequence adds to a busy worker's work."""
        return decode_seconds(output_tokens, context_tokens, self.decode_sequence_s, self.decode_context_s)


def prefill_seconds(before: Tokens, context: float, token_s: Tokens | float, half_context_s: Tokens | float) -> Tokens:
    """`CostModel.prefill_s` of the tokens from `before` to `context`, for one worker or for many with coefficients of
    their own; `half_context_s` is half of `prefill_token_context_s`. Each new token attends to what stands before it:
    on average to half of both ends together."""
    return (context - before) * (token_s + half_context_s * (context + before))


def decode_seconds(
    output_tokens: Tokens, context_tokens: Tokens, sequence_s: Tokens | float, context_s: Tokens | float
) -> Tokens:
    """`CostModel.decode_s`, for one worker or for many with coefficients of their own."""
    return output_tokens * (sequence_s + context_s * context_tokens)


def _milliseconds(*coefficients: float, share: float = 1.0) -> CostModel:
    """From the regressions' own unit. Times are divided by `share`: the part of a step that they describe, or how many
    times as fast other GPUs are taken to be."""
    return CostModel(*(value / share / 1000 for value in coefficients))


PROFILES: dict[str, CostModel] = {
    # Preble's released regressions for Mistral-7B on an A6000 (0.9 of a step), the quadratic branch between 192 and 384
    # tokens, which turns negative, replaced by the line and its floor; decode by the same file's batch regression.
    "mistral-7b-a6000": _milliseconds(
        22.0, 4.209777, 0.10842571, 1.86e-4, 2.19e-6, 22.0 + 0.32, 0.05, 1.86e-4, share=0.9
    ),
    # Preble's released regression for Llama-3-70B on two H100 (tensor parallel). It was fitted to prefills: its cost of
    # context, taken for each sequence that decodes, would have a step read the KV cache 38 times. So decode reads it
    # once: 327,680 bytes a token at 70 % of 2 x 3.35 TB/s (NVIDIA's data sheet).
    "llama-3-70b-h100": _milliseconds(
        18.667307, 18.667307, 0.0798791064, 2.68531603e-3, 7.44344923e-7, 18.667307, 0.0798791064, 7e-5
    ),
    # The same on four H100: the times of two by 0.55, nine tenths of what twice the GPUs could give. An assumption.
    "llama-3-70b-4xh100": _milliseconds(
        18.667307, 18.667307, 0.0798791064, 2.68531603e-3, 7.44344923e-7, 18.667307, 0.0798791064, 7e-5, share=1 / 0.55
    ),
    # A two-layer toy on one CPU core: only to have an order of magnitude before anything is measured.
    "tiny-cpu": _milliseconds(2.0, 2.0, 0.01, 1e-4, 1e-7, 3.0, 0.3, 1e-4),
}


def profile(name: str) -> CostModel:
    """The coefficients of a known GPU and model. Raises SettingsError that lists the known ones."""
    if name not in PROFILES:
        raise SettingsError(f"profile {name!r}: not one of {', '.join(PROFILES)}", param="profile")
    return PROFILES[name]
