"""How few tokens a text can possibly have, told without tokenising it.

A megabyte of text for a context of four thousand tokens should cost a division, not a second of a processor. The bound
is sound or not given: where every byte of the text must end up in some token, n bytes need at least n / (bytes of the
longest token) tokens. Tokenizers that drop or fold text (strip or lower-case it, skip white space, lump unknown
characters together) get no bound.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

_NORMALIZED_SHRINK = 4
"""Composing characters makes UTF-8 at most three times shorter (Hangul: three letters of three bytes to one of three);
four to be sure."""

_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation"})


def longest_token_bytes(tokenizer: Tokenizer) -> int:
    """Most bytes of UTF-8 text that one token can stand for; 0 if there is no such bound.

    Counted on tokens as the vocabulary writes them, which is never shorter than the text they stand for: byte-level
    vocabularies write a byte as one character or two bytes, the others a space as the three bytes of its mark.
    """
    shrink = _normalizer_shrink(tokenizer)
    vocab = tokenizer.get_vocab()
    if not shrink or not _pre_tokenizer_keeps(tokenizer) or not _spells_every_byte(vocab):
        return 0
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return 0
    return shrink * max(len(piece.encode()) for piece in vocab)


def _normalizer_shrink(tokenizer: Tokenizer) -> int:
    """By how much normalising can shorten a text at most; 0 if that is not bounded."""
    if tokenizer.normalizer is None:
        return 1
    shrink = 1
    for step in _steps(tokenizer.normalizer, "normalizers"):
        if step["type"] == "NFC":
            shrink = _NORMALIZED_SHRINK
        elif step["type"] != "Prepend" and not _is_space_mark(step):
            return 0
    return shrink


def _is_space_mark(step: dict[str, Any]) -> bool:
    return (step["type"], step.get("pattern"), step.get("content")) == ("Replace", {"String": " "}, "\u2581")


def _pre_tokenizer_keeps(tokenizer: Tokenizer) -> bool:
    if tokenizer.pre_tokenizer is None:
        return True
    steps = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    return all(step["type"] in _KEEPING_PRE_TOKENIZERS and step.get("behavior") != "Removed" for step in steps)


def _spells_every_byte(vocab: dict[str, int]) -> bool:
    """Whether no text is unknown: all bytes are tokens, as byte-level characters or as `<0x..>`."""
    byte_level = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
    return all(char in vocab for char in byte_level) or all(f"<0x{byte:02X}>" in vocab for byte in range(256))


def _steps(component: Any, key: str) -> list[dict[str, Any]]:
    """The single steps of a normalizer or pre-tokenizer, sequences within sequences laid flat."""
    return _flat(json.loads(component.__getstate__()), key)


def _flat(state: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [step for inner in state[key] for step in _flat(inner, key)] if key in state else [state]
