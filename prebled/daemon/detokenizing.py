"""Makes text of token ids, incrementally and in constant time per token.

Nearly all language models' tokenizers spell a token as bytes, independent of its neighbours: byte-level BPE, and
SentencePiece-like BPE with byte fallback. For these a table from id to bytes, filled as tokens appear, feeds an
incremental UTF-8 decoder: exact, and free of the re-decoding that `tokenizers`' own `DecodeStream` does (which in
addition raises on some invalid byte sequences and holds others back without a bound). Whether the table speaks for a
tokenizer is tried on samples of its vocabulary when it is loaded; the others are decoded over a small sliding window.

The rule: the text equals `tokenizer.decode(ids, skip_special_tokens=True)`, except that bytes which are no UTF-8 may
give another number of replacement characters.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from prebled.daemon.text import TokenDecoder

HELD_TOKENS = 5
"""Tokens a window waits for the rest of a character: four bytes at most, one token each, and one to be sure."""

_PROBE_TOKENS = 512
_SPACE_MARK = "\u2581"
_REPLACEMENT = "\ufffd"
_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One tokenizer's way from ids to text. `hidden`: ids without text, beside the tokenizer's special tokens."""

    def __init__(self, tokenizer: Tokenizer, hidden: Iterable[int] = ()) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._hidden = frozenset(hidden) | {token for token, spec in added.items() if spec.special}
        self._table: _Table | None = None
        self._strip_space = False
        spelling = _spelling(tokenizer)
        if spelling is not None:
            spell, self._strip_space = spelling
            self._table = _Table(tokenizer, self._hidden, spell)
            if not self._agrees(sorted(added)):
                self._table = None

    @property
    def is_exact(self) -> bool:
        """Whether the table of bytes serves, not the window."""
        return self._table is not None

    def stream(self) -> TokenDecoder:
        """A decoder for one answer."""
        if self._table is not None:
            return TableDecoder(self._table, self._strip_space)
        return WindowDecoder(self._tokenizer, self._hidden)

    def _agrees(self, added: list[int]) -> bool:
        """Compare with the tokenizer's own decoding, on tokens from all over the vocabulary, alone and in a row. Bytes
        that are no character by themselves are left out: there the replacement characters may differ."""
        size = self._tokenizer.get_vocab_size()
        sample = [
            token for token in (*range(0, size, max(size // _PROBE_TOKENS, 1)), *added) if token not in self._hidden
        ]
        whole = [token for token in sample if _REPLACEMENT not in self._theirs([token])]
        return all(self._ours(ids) == self._theirs(ids) for ids in (whole, *([token] for token in whole)))

    def _ours(self, ids: list[int]) -> str:
        decoder = self.stream()
        return decoder.push(ids) + decoder.finish()

    def _theirs(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class _Table(dict[int, bytes]):
    """Token id to its bytes; filled as ids are asked for, so at most the size of the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], spell: Callable[[str], bytes]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._spell = spell

    def __missing__(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""  # not kept: ids outside the vocabulary have no end
        spelled = self[token] = b"" if token in self._hidden else self._spell(piece)
        return spelled


class TableDecoder:
    """Bytes from the table through an incremental UTF-8 decoder. `strip_space`: drop one space at the very start."""

    def __init__(self, table: Mapping[int, bytes], strip_space: bool) -> None:
        self._table = table
        self._strip_space = strip_space
        self._utf8 = _utf8("replace")

    def push(self, tokens: Sequence[int]) -> str:
        """See `TokenDecoder.push`."""
        table = self._table
        return self._stripped(self._utf8.decode(b"".join([table[token] for token in tokens])))

    def finish(self) -> str:
        """See `TokenDecoder.finish`."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text


class WindowDecoder:
    """For any tokenizer: decodes the tokens behind the last text given out together with those since, and gives out
    what has come on top. The former are there because a token's text may depend on the one before it."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._given: list[int] = []
        self._given_text = ""
        self._pending: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """See `TokenDecoder.push`."""
        known = [
            token for token in tokens if token not in self._hidden and self._tokenizer.id_to_token(token) is not None
        ]
        return "".join([self._step(token) for token in known])

    def finish(self) -> str:
        """See `TokenDecoder.finish`."""
        return self._give(self._decode(self._given + self._pending)) if self._pending else ""

    def _step(self, token: int) -> str:
        if self._tokenizer.id_to_token(token) is None:
            return ""
        self._pending.append(token)
        text = self._decode(self._given + self._pending)
        if text.endswith(_REPLACEMENT) and len(self._pending) < HELD_TOKENS:
            return ""
        return self._give(text)

    def _give(self, text: str) -> str:
        alone = self._decode(self._pending)
        new = text[len(self._given_text) :] if text.startswith(self._given_text) else alone
        self._given, self._given_text, self._pending = self._pending, alone, []
        return new

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


def _spelling(tokenizer: Tokenizer) -> tuple[Callable[[str], bytes], bool] | None:
    """How the tokenizer's decoder spells a token, and whether it drops a space at the start; None if it is of another
    kind than the two that spell tokens independently."""
    steps = _decoder_steps(tokenizer)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _spell_byte_level, False
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return None
    replaces_mark = steps[0]["pattern"] == {"String": _SPACE_MARK} and steps[0]["content"] == " "
    strip = {"content": " ", "start": 0, "stop": 0} | (steps[3] if len(steps) == 4 else {})
    if not replaces_mark or strip["content"] != " " or strip["start"] not in (0, 1) or strip["stop"] != 0:
        return None
    return _spell_byte_fallback, strip["start"] == 1


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return steps


def _spell_byte_level(piece: str) -> bytes:
    """Byte-level BPE writes each byte as a printable character; a token with any other character stands for itself."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in piece])
    except KeyError:
        return piece.encode()


def _spell_byte_fallback(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            pass
    return piece.replace(_SPACE_MARK, " ").encode()


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes follow from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
