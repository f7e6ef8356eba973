"""Ids to text, incrementally: exact, independent of chunking, bounded in what it holds back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import made_tokenizers as made
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from prebled.daemon.detokenizing import _BYTE_OF_CHAR, HELD_TOKENS, Detokenizer, WindowDecoder
from prebled.daemon.text import TextAssembler, TokenDecoder

REPLACEMENT = "\ufffd"
QUICK = settings(max_examples=60, deadline=None)
KINDS: list[tuple[Callable[[], Tokenizer], bool]] = [
    (made.byte_level, True),
    (made.byte_fallback, True),
    (made.awkward, True),
    (made.metaspace, False),
    (made.word_piece, False),
]
IDS = st.lists(st.integers(0, 700), max_size=40)  # some beyond every vocabulary here
CUTS = st.lists(st.integers(0, 40), max_size=8)


def chunks(ids: list[int], cuts: list[int]) -> list[tuple[int, ...]]:
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [tuple(ids[a:b]) for a, b in pairwise(bounds)]


def assemble(decoder: TokenDecoder, parts: list[tuple[int, ...]], stop: tuple[str, ...] = ()) -> tuple[str, int, bool]:
    """The whole text, the tokens used, and whether a stop string ended it."""
    assembler = TextAssembler(decoder, stop)
    text, used, stopped = "", 0, False
    for part in parts:
        piece, stopped, taken = assembler.push(part)
        text, used = text + piece, used + taken
        if stopped:
            break
    return text + assembler.finish(), used, stopped


@pytest.mark.parametrize(("make", "is_exact"), KINDS)
def test_the_table_serves_where_tokens_are_spelled_alone(make: Callable[[], Tokenizer], is_exact: bool) -> None:
    assert Detokenizer(make()).is_exact == is_exact


@pytest.mark.parametrize("make", [kind for kind, _ in KINDS])
@QUICK
@given(text=st.text(max_size=60), cuts=CUTS)
def test_text_comes_back(make: Callable[[], Tokenizer], text: str, cuts: list[int]) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert assemble(Detokenizer(tokenizer).stream(), chunks(ids, cuts))[0] == expected
    if make is made.byte_level and not any(special in text for special in made.SPECIALS):
        assert expected == text


@pytest.mark.parametrize("make", [kind for kind, _ in KINDS])
@QUICK
@given(ids=IDS, cuts=CUTS)
def test_any_chunking_gives_what_the_tokenizer_decodes(
    make: Callable[[], Tokenizer], ids: list[int], cuts: list[int]
) -> None:
    tokenizer = make()
    detokenizer = Detokenizer(tokenizer)
    whole = assemble(detokenizer.stream(), [tuple(ids)])
    assert assemble(detokenizer.stream(), chunks(ids, cuts)) == whole
    assert whole[1:] == (len(ids), False)
    theirs = tokenizer.decode(ids, skip_special_tokens=True)
    if make is made.byte_level or REPLACEMENT not in theirs:
        assert whole[0] == theirs


@QUICK
@given(ids=IDS, cuts=CUTS, data=st.data())
def test_stop_strings_cut_before_the_first_completed_one(ids: list[int], cuts: list[int], data: st.DataObject) -> None:
    detokenizer = Detokenizer(made.byte_level())
    text = assemble(detokenizer.stream(), [tuple(ids)])[0]
    inside = st.tuples(st.integers(0, len(text)), st.integers(1, 5)).map(lambda p: text[p[0] : p[0] + p[1]])
    stops = tuple(data.draw(st.lists(st.one_of(inside, st.text("aeo \n", max_size=3)).filter(bool), max_size=4)))
    expected = cut_at_first(text, stops)
    got, used, stopped = assemble(detokenizer.stream(), chunks(ids, cuts), stops)
    assert got == expected
    if stopped:
        # The last token used completed it, and no earlier one did.
        assert cut_at_first(assemble(detokenizer.stream(), [tuple(ids[:used])])[0], stops) == expected
        _, _, earlier = assemble(detokenizer.stream(), [tuple(ids[: used - 1])], stops)
        assert not earlier
    else:
        assert used == len(ids)


def cut_at_first(text: str, stops: tuple[str, ...]) -> str:
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text.endswith(stop, 0, end):
                return text[: end - len(stop)]
    return text


class Pieces:
    """Token n is the n-th of some strings."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces

    def push(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)

    def finish(self) -> str:
        return ""


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(st.text("ab", min_size=1, max_size=6), max_size=12),
    stops=st.lists(st.text("ab", min_size=3, max_size=6), min_size=1, max_size=3),
)
@example(pieces=["aaab"], stops=["aab"])
@example(pieces=[*"aaab"], stops=["aab"])
@example(pieces=["xabcdx"], stops=["bc", "abcd"])
@example(pieces=["xabcx"], stops=["bc", "abc"])
@example(pieces=["xabxcd"], stops=["cd", "ab"])
def test_stop_strings_that_overlap_themselves_and_others(pieces: list[str], stops: list[str]) -> None:
    expected = cut_at_first("".join(pieces), tuple(stops))
    assert assemble(Pieces(pieces), [tuple(range(len(pieces)))], tuple(stops))[0] == expected
    assert assemble(Pieces(pieces), [(token,) for token in range(len(pieces))], tuple(stops))[0] == expected


class Letters:
    """Token n is character n."""

    def push(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def finish(self) -> str:
        return ""


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    assembler = TextAssembler(Letters(), ("END",))
    given_out = [assembler.push((ord(letter),))[0] for letter in "aEbENEx"]
    assert given_out == ["a", "", "Eb", "", "", "EN", "Ex"]


def test_tokens_behind_a_stop_string_are_not_used() -> None:
    assembler = TextAssembler(Letters(), ("cd",))
    assert assembler.push(tuple(map(ord, "abcdefg"))) == ("ab", True, 4)
    assert assembler.push(tuple(map(ord, "hi"))) == ("", True, 0)
    assert assembler.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    assembler = TextAssembler(Letters(), ("END",))
    assert assembler.push(tuple(map(ord, "the EN")))[0] == "the "
    assert assembler.finish() == "EN"


@pytest.mark.parametrize("make", [made.byte_level, made.byte_fallback])
def test_unfinished_characters_wait_and_then_are_replaced(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    euro = byte_tokens(tokenizer, "\u20ac".encode())
    decoder = Detokenizer(tokenizer).stream()
    assert [decoder.push((token,)) for token in euro] == ["", "", "\u20ac"]
    assert decoder.push(euro[:2]) == ""
    assert decoder.finish() == REPLACEMENT


@pytest.mark.parametrize("make", [made.byte_level, made.byte_fallback])
def test_endless_invalid_bytes_flow(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    bad = byte_tokens(tokenizer, bytes([0xE2, 0x82, 0xFF, 0x80]) * 5000)
    decoder = Detokenizer(tokenizer).stream()
    held = most_held = 0
    began = time.perf_counter()
    for token in bad:
        held = 0 if decoder.push((token,)) else held + 1
        most_held = max(most_held, held)
    assert most_held <= 3
    assert time.perf_counter() - began < 2.0  # a quadratic one takes minutes


def test_the_window_holds_back_a_bounded_number_of_tokens() -> None:
    tokenizer = made.byte_level()
    lead = byte_tokens(tokenizer, b"\xe2")[0]
    decoder = WindowDecoder(tokenizer, frozenset())
    given_out = [bool(decoder.push((lead,))) for _ in range(4 * HELD_TOKENS)]
    assert given_out == ([False] * (HELD_TOKENS - 1) + [True]) * 4
    text = "na\u00efve \u4f60\u597d \U0001f600, fine."
    ids = tokenizer.encode(text).ids
    fresh = WindowDecoder(tokenizer, frozenset())
    assert "".join(fresh.push((token,)) for token in ids) + fresh.finish() == text


def test_special_and_end_tokens_give_no_text() -> None:
    tokenizer = made.byte_level()
    plain = tokenizer.encode("hello").ids
    hidden = plain[0]
    stream = Detokenizer(tokenizer, hidden=[hidden]).stream()
    special = tokenizer.token_to_id("<|im_end|>")
    assert stream.push((special, *plain)) == tokenizer.decode(plain[1:])


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> tuple[int, ...]:
    """One token for each byte."""
    char_of_byte = {byte: char for char, byte in _BYTE_OF_CHAR.items()}
    found = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
    if found[0] is None:
        found = [tokenizer.token_to_id(char_of_byte[byte]) for byte in data]
    assert None not in found
    return tuple(found)
