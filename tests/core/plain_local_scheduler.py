"""`LocalScheduler` as one would write it down: every order from the whole queue, without regard to cost. What the real
one gives must be the same."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from prebled.core.local_scheduler import Waiting


class PlainLocalScheduler:
    def __init__(self, groups: int = 10) -> None:
        round_length = lcm(*range(1, groups + 1))
        self._groups = groups
        self._strides = [round_length // (group + 1) for group in range(groups)]
        # Stride scheduling: a group's next slot stands at its pass; the least pass goes first.
        self._passes = [0] * groups
        # With fixed shares the strides alone take the oldest request within this many slots.
        self.patience = sum(range(1, groups + 1)) + groups
        self._overtaken = 0
        self._issued: list[tuple[int, int]] = []

    def order(self, waiting: Sequence[Waiting]) -> list[int]:
        """Indices into `waiting`, best first, each once. Requests of the last order that are now absent count as
        taken in that order."""
        self._settle({request.arrival for request in waiting})
        arrivals = [request.arrival for request in waiting]
        by_age = sorted(range(len(waiting)), key=arrivals.__getitem__)
        groups = [self._group(prompt, cached) for prompt, cached, _ in waiting]
        self._admit(set(groups))
        order = self._by_stride(by_age, groups)
        if self._overtaken + len(order) > self.patience:
            order = self._with_oldest(order, by_age)
        self._issued = [(arrivals[index], groups[index]) for index in order]
        return order

    def _group(self, prompt_tokens: int, cached_tokens: int) -> int:
        share = cached_tokens * self._groups // max(prompt_tokens, 1)
        return min(max(share, 0), self._groups - 1)

    def _settle(self, present: set[int]) -> None:
        """Charge the slots that were used since the last order to their groups."""
        issued = self._issued
        taken = [(arrival, group) for arrival, group in issued if arrival not in present]
        if not taken:
            return
        if len(taken) == len(issued):
            # Nobody was left waiting: nothing is owed to anyone.
            self._passes = [0] * self._groups
            self._overtaken = 0
            self._issued = []
            return
        ages = iter(sorted(arrival for arrival, _ in issued))
        oldest = next(ages)
        gone: set[int] = set()
        for arrival, group in taken:
            self._passes[group] += self._strides[group]
            gone.add(arrival)
            self._overtaken += 1
            if arrival == oldest:
                self._overtaken = 0
                while oldest in gone:  # ends: some of those issued are still present
                    oldest = next(ages)
        self._issued = [entry for entry in issued if entry[0] not in gone]

    def _admit(self, active: set[int]) -> None:
        """A group that was empty starts level with the others: it has saved up nothing."""
        before = {group for _, group in self._issued}
        if before:
            level = min(self._passes[group] for group in before)
            for group in active - before:
                self._passes[group] = max(self._passes[group], level)

    def _by_stride(self, by_age: list[int], groups: list[int]) -> list[int]:
        """Merge the groups by the pass of each slot; at equal passes the higher group goes first."""
        passes = list(self._passes)
        keys = [0] * len(groups)
        last = self._groups - 1
        for index in by_age:
            group = groups[index]
            keys[index] = passes[group] * self._groups + last - group
            passes[group] += self._strides[group]
        return sorted(by_age, key=keys.__getitem__)

    def _with_oldest(self, order: list[int], by_age: list[int]) -> list[int]:
        """Where the oldest was overtaken `patience` times, it goes next. Strides alone do not promise that when
        shares change, since a request may always stand in the group whose turn has just passed."""
        result: list[int] = []
        placed = bytearray(len(order))
        ages = iter(by_age)
        oldest = next(ages)
        overtaken = self._overtaken
        for index in order:
            while not placed[index]:
                chosen = oldest if overtaken >= self.patience else index
                placed[chosen] = 1
                result.append(chosen)
                overtaken += 1
                if chosen == oldest:
                    overtaken = 0
                    oldest = next((older for older in ages if not placed[older]), -1)
        return result
