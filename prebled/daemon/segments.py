"""Tokenises text piece by piece, remembering pieces, so that the history of a chat is tokenised once.

Text is cut just before each special token. What such a token separates is normalised, split and merged independently
by `tokenizers`, so the pieces' ids in a row are the whole text's ids. A tokenizer's added tokens can break this (those
that swallow space on their left, match normalised text, or only whole words): no cut is made at these. Whether pieces
and whole agree is besides tried on samples at load, and if they do not, nothing is cut.

The rule: `encode` gives what `tokenizer.encode` gives, always. Called from several threads at once.
"""

from __future__ import annotations

import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice, pairwise

import structlog
from tokenizers import AddedToken, Tokenizer

log = structlog.get_logger()

MAX_PIECES = 4096
"""Special tokens looked for in a text; what follows is one piece. A text of more is no chat, and looking up each piece
would cost more than it saves."""

_ENTRY_BYTES = 200  # what a cache entry costs beside its text and ids, about
_PROBED_TOKENS = 64


class SegmentedEncoder:
    """Encodes text into token ids, uint32 LE. `cache_bytes` bounds the memory of remembered pieces."""

    def __init__(self, tokenizer: Tokenizer, cache_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._cache = _PieceCache(cache_bytes)
        added = tokenizer.get_added_tokens_decoder().values()
        self._scan, self._cuts = _scanner(list(added))
        self._around: tuple[bytes, bytes] | None = self._find_around()
        if self._cuts and not self._agrees():
            log.info("texts are tokenised whole: this tokenizer's pieces differ from the whole")
            self._cuts = frozenset()

    @property
    def is_segmented(self) -> bool:
        """Whether texts are cut at special tokens."""
        return bool(self._cuts)

    @property
    def cached_bytes(self) -> int:
        """Memory taken by remembered pieces, about."""
        return self._cache.used_bytes

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Ids of `text`; special tokens written in it are recognised. `add_special_tokens`: with what the tokenizer
        puts around a text (usually a beginning-of-sequence token). `text` must be encodable as UTF-8."""
        if not add_special_tokens:
            return b"".join(self._encode_pieces(self._cut(text)))
        if self._around is None:
            return self._encode_whole([text], add_special_tokens=True)[0]
        before, after = self._around
        return b"".join([before, *self._encode_pieces(self._cut(text)), after])

    def _cut(self, text: str) -> list[str]:
        if not self._cuts:
            return [text]
        starts = [m.start() for m in islice(self._scan.finditer(text), MAX_PIECES) if m.group() in self._cuts]
        return [text[a:b] for a, b in pairwise([0, *starts, len(text)]) if a < b]

    def _encode_pieces(self, pieces: list[str]) -> list[bytes]:
        found = self._cache.get(pieces)
        missing = [piece for piece in dict.fromkeys(pieces) if piece not in found]
        if missing:
            made = dict(zip(missing, self._encode_whole(missing), strict=True))
            self._cache.put(made)
            found |= made
        return [found[piece] for piece in pieces]

    def _encode_whole(self, texts: list[str], add_special_tokens: bool = False) -> list[bytes]:
        # The batch form lets other threads run meanwhile, the single form does not.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [array("I", encoding.ids).tobytes() for encoding in encodings]  # native order, little-endian in effect

    def _find_around(self) -> tuple[bytes, bytes] | None:
        """The ids that the tokenizer puts before and after any text; None if that cannot be told."""
        found: set[tuple[bytes, bytes]] = set()
        for text in ("a", "Hello world", "1\n2"):
            plain = self._encode_whole([text])[0]
            full = self._encode_whole([text], add_special_tokens=True)[0]
            at = full.find(plain)
            if at % 4 or not plain:
                return None
            found.add((full[:at], full[at + len(plain) :]))
        return found.pop() if len(found) == 1 else None

    def _agrees(self) -> bool:
        uncached = _PieceCache(0)
        cache, self._cache = self._cache, uncached
        texts = _probes(sorted(self._cuts)[:_PROBED_TOKENS])
        try:
            return all(
                self.encode(text, special) == self._encode_whole([text], add_special_tokens=special)[0]
                for text in texts
                for special in (False, True)
            )
        finally:
            self._cache = cache


class _PieceCache:
    """Pieces and their ids, the least recently used dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._ids: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pieces: Sequence[str]) -> dict[str, bytes]:
        """Those that are there."""
        found: dict[str, bytes] = {}
        with self._lock:
            for piece in pieces:
                ids = self._ids.get(piece)
                if ids is not None:
                    self._ids.move_to_end(piece)
                    found[piece] = ids
        return found

    def put(self, made: dict[str, bytes]) -> None:
        """Remember; a piece that would take an eighth of the room or more is not worth the others."""
        with self._lock:
            for piece, ids in made.items():
                cost = _cost(piece, ids)
                if cost * 8 <= self._max_bytes and piece not in self._ids:
                    self._ids[piece] = ids
                    self.used_bytes += cost
            while self.used_bytes > self._max_bytes:
                self.used_bytes -= _cost(*self._ids.popitem(last=False))


def _cost(piece: str, ids: bytes) -> int:
    return sys.getsizeof(piece) + len(ids) + _ENTRY_BYTES


def _scanner(added: list[AddedToken]) -> tuple[re.Pattern[str], frozenset[str]]:
    """A pattern that finds added tokens in raw text as `tokenizers` does (the leftmost, of these the longest, without
    overlap), and those of them before which a cut changes nothing."""
    raw = [token for token in added if token.content and not token.normalized]
    contents = sorted((token.content for token in raw), key=len, reverse=True)
    cuts = frozenset(token.content for token in raw if not token.lstrip and not token.single_word)
    return re.compile("|".join(map(re.escape, contents))), cuts


def _probes(cuts: list[str]) -> list[str]:
    """Texts that would betray a tokenizer whose pieces depend on each other."""
    texts = ["", "plain text, no token", " \u00e9\u4e16\U0001f600 "]
    for index, cut in enumerate(cuts):
        other = cuts[(index * 7 + 3) % len(cuts)]
        texts.append(f"{cut}user\nHello  there{other}\n{cut} a{cut}{other}b \u00e9{other}")
        texts.append(f" lead {cut} Mid.Dle\t{other}  two  \n\n{cut}")
    return texts
