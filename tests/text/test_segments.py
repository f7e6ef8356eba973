"""Tokenising by pieces: the same ids as the whole text's, whatever the tokenizer, and no piece twice."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable

import made_tokenizers as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from prebled.daemon import segments
from prebled.daemon.segments import SegmentedEncoder

SEGMENTED = [
    made.byte_level,
    made.byte_level_with_bos,
    made.awkward,
    made.byte_fallback,
    made.metaspace,
    made.word_piece,
]
PIECES = st.one_of(
    st.sampled_from([*made.SPECIALS, "<left>", "<right>", "<word>", "<Norm>", "<norm>", "<unk>"]),
    st.sampled_from([" ", "\n", "  ", "\t", "a", "<", ">", "<|", "|>", "im_end", "Hello", "word<word>"]),
    st.text(max_size=8),
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)


class CountingEncoder(SegmentedEncoder):
    """Remembers which texts reached the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, cache_bytes: int = 1 << 20) -> None:
        self.tokenised: list[str] = []
        super().__init__(tokenizer, cache_bytes)
        self.tokenised.clear()

    def _encode_whole(self, texts: list[str], add_special_tokens: bool = False) -> list[bytes]:
        self.tokenised += texts
        return super()._encode_whole(texts, add_special_tokens)


def whole(tokenizer: Tokenizer, text: str, add_special_tokens: bool = False) -> bytes:
    return array("I", tokenizer.encode(text, add_special_tokens=add_special_tokens).ids).tobytes()


@pytest.mark.parametrize("make", SEGMENTED)
@settings(max_examples=80, deadline=None)
@given(text=TEXTS, special=st.booleans())
def test_pieces_give_the_ids_of_the_whole(make: Callable[[], Tokenizer], text: str, special: bool) -> None:
    encoder = _encoder(make)
    assert encoder.is_segmented
    expected = whole(make(), text, special)
    assert encoder.encode(text, special) == expected
    assert encoder.encode(text, special) == expected  # now from memory


_encoders: dict[Callable[[], Tokenizer], SegmentedEncoder] = {}


def _encoder(make: Callable[[], Tokenizer]) -> SegmentedEncoder:
    """One for all examples, so that its memory is filled by some and used by others."""
    return _encoders.setdefault(make, SegmentedEncoder(make(), 1 << 16))


def test_no_cut_where_a_token_swallows_space_or_overlaps() -> None:
    encoder = CountingEncoder(made.awkward())
    encoder.encode("one <left>two<word> three<|im_end|><s>four<|im_end|>five<Norm>six", False)
    assert encoder.tokenised == ["one <left>two<word> three", "<|im_end|><s>four", "<|im_end|>five<Norm>six"]


def test_a_tokenizer_whose_pieces_differ_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    # A tokenizer that swallows the space before its special tokens, passed off as one that does not.
    tokenizer = Tokenizer.from_str(made.awkward().to_str())
    everything = segments._scanner(list(tokenizer.get_added_tokens_decoder().values()))[0]
    monkeypatch.setattr(segments, "_scanner", lambda added: (everything, frozenset({"<left>", "<s>"})))
    encoder = SegmentedEncoder(tokenizer, 1 << 16)
    assert not encoder.is_segmented
    text = "lead <left> and <s> tail"
    assert encoder.encode(text, True) == whole(tokenizer, text, True)


def test_the_history_of_a_chat_is_tokenised_once() -> None:
    encoder = CountingEncoder(made.byte_level())
    history = "".join(f"<|im_start|>user\nquestion {turn}<|im_end|>\n" for turn in range(20))
    encoder.encode(history, False)
    encoder.tokenised.clear()
    longer = history + "<|im_start|>user\nand now?<|im_end|>\n"
    assert encoder.encode(longer, False) == whole(made.byte_level(), longer)
    assert encoder.tokenised == ["<|im_start|>user\nand now?"]


def test_memory_is_bounded_and_the_longest_unused_goes_first() -> None:
    encoder = CountingEncoder(made.byte_level(), cache_bytes=8000)
    for turn in range(200):
        encoder.encode(f"text number {turn}", False)
        encoder.encode("the one in use", False)
        assert encoder.cached_bytes <= 8000
    assert encoder.tokenised.count("the one in use") == 1
    encoder.tokenised.clear()
    for text in ("text number 199", "text number 0"):
        encoder.encode(text, False)
    assert encoder.tokenised == ["text number 0"]


def test_a_huge_piece_does_not_drive_out_the_others() -> None:
    encoder = CountingEncoder(made.byte_level(), cache_bytes=8000)
    encoder.encode("small", False)
    encoder.encode("huge " * 1000, False)
    encoder.tokenised.clear()
    encoder.encode("small", False)
    assert encoder.tokenised == []


def test_very_many_special_tokens_are_not_looked_up_one_by_one() -> None:
    encoder = CountingEncoder(made.byte_level())
    text = "".join(f"<s>{n}" for n in range(segments.MAX_PIECES + 500))
    assert encoder.encode(text, False) == whole(made.byte_level(), text)
    assert len(encoder.tokenised) == segments.MAX_PIECES


def test_what_surrounds_a_text_is_told_apart_from_it() -> None:
    tokenizer = made.byte_level_with_bos()
    encoder = CountingEncoder(tokenizer)
    bos = tokenizer.token_to_id("<s>")
    ids = memoryview(encoder.encode("hello<|im_end|>there", True)).cast("I")
    assert ids[0] == bos
    assert encoder.tokenised == ["hello", "<|im_end|>there"]
    assert memoryview(encoder.encode("hello", False)).cast("I")[0] != bos


def test_threads_share_the_memory() -> None:
    tokenizer = made.byte_level()
    encoder = SegmentedEncoder(tokenizer, 20_000)
    texts = [f"<|im_start|>user\nquestion {n % 37} {n % 11}<|im_end|>\n" * 3 for n in range(400)]
    expected = {text: whole(tokenizer, text) for text in texts}
    wrong: list[str] = []

    def work(start: int) -> None:
        turned = texts[start:] + texts[:start]
        wrong.extend(text for text in turned if encoder.encode(text, False) != expected[text])

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 <= encoder.cached_bytes <= 20_000
