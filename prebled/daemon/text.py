"""Assembles the text of one answer from its tokens as they come, and finds stop strings in it.

The rule: the text does not depend on how the tokens were cut into pushes, and nothing is given out that a later token
could still take back (the start of a stop string; an unfinished character is the decoder's to keep). With stop strings
the text ends just before the first one that is completed; of several completed by the same character, the longest.
Pure. Not known here: how a token becomes text (`TokenDecoder`), and who reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class TokenDecoder(Protocol):
    """Turns one answer's tokens into text, keeping back bytes of an unfinished character (a bounded few)."""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete. Special and unknown tokens give none."""

    def finish(self) -> str:
        """What was kept back, with replacement characters for what never became a character."""


class Assembled(NamedTuple):
    """What a push brought: `text` to give out, whether a stop string was completed, and how many of the pushed tokens
    belong to the answer: all, or those up to and including the one that completed the stop string."""

    text: str
    stopped: bool
    used_tokens: int


class TextAssembler:
    """One answer in the making."""

    def __init__(self, decoder: TokenDecoder, stop: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._stops = _StopMatcher(stop) if stop else None

    def push(self, tokens: Sequence[int]) -> Assembled:
        """Take the next tokens. After a stop nothing more is used."""
        if self._stops is None:
            return Assembled(self._decoder.push(tokens), False, len(tokens))
        pieces: list[str] = []
        for index, token in enumerate(tokens):
            if self._stops.stopped:
                return Assembled("".join(pieces), True, index)
            piece = self._decoder.push((token,))
            if piece:
                pieces.append(self._stops.feed(piece))
        return Assembled("".join(pieces), self._stops.stopped, len(tokens))

    def finish(self) -> str:
        """The rest, once no more tokens come."""
        if self._stops is None:
            return self._decoder.finish()
        return "" if self._stops.stopped else self._stops.finish(self._decoder.finish())


class _StopMatcher:
    """Looks for several strings at once in text that comes in pieces, by Knuth, Morris and Pratt's automaton: a state
    is how much of a stop string the text so far ends with, so the longest state is what must be held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._states = [0] * len(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is safe to give out now. Sets `stopped`."""
        end, length = len(text) + 1, 0
        for index in range(len(self._stops)):
            found = self._scan(index, text)
            size = len(self._stops[index][0])
            if found and (found < end or (found == end and size > length)):
                end, length = found, size
        text = self._held + text
        if length:
            self.stopped = True
            keep = len(self._held) + end - length
        else:
            keep = len(text) - max(self._states)
        self._held = text[keep:]
        return text[:keep]

    def finish(self, rest: str) -> str:
        """The last text, including what was held back if it did not become a stop string."""
        text = self.feed(rest)
        return text if self.stopped else text + self._held

    def _scan(self, index: int, text: str) -> int:
        """Advance one stop string's state over `text`; the position behind its first occurrence, 0 if there is none."""
        stop, borders = self._stops[index]
        state, position = self._states[index], 0
        while position < len(text):
            if state == 0:
                position = text.find(stop[0], position)
                if position < 0:
                    break
            while state and stop[state] != text[position]:
                state = borders[state]
            if stop[state] == text[position]:
                state += 1
            position += 1
            if state == len(stop):
                return position
        self._states[index] = state
        return 0


def _borders(stop: str) -> list[int]:
    """For each length up to that of `stop`: the longest proper prefix of that much of it which is also its suffix."""
    borders = [0, 0]
    for char in stop[1:]:
        state = borders[-1]
        while state and stop[state] != char:
            state = borders[state]
        borders.append(state + 1 if stop[state] == char else 0)
    return borders
