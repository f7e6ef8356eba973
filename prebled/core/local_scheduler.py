"""Orders a worker's waiting requests: priority groups by cached share (Preble, section 3.3 and algorithm 3).

Group g of P holds the requests whose cached share lies in [g/P, (g+1)/P); with P = 10, 63 of 100 tokens cached is
group 6. Slots are given in proportion to g + 1 (10 + 9 + ... + 1 = 55 per round with ten groups), first come first
served within a group. The share is told anew whenever it is known, so a request moves up when its prefix is computed.

Rule it keeps: no starvation. If requests are taken in the order that it gives, of any `patience` + 1 slots in a row
one goes to the request that is then the oldest, so a request with k older ones beside it is taken within (k + 1) *
(`patience` + 1) slots, whatever arrives and however shares change. It does not know time, batches or memory: which
requests were taken it is told, or sees from their absence.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from math import lcm
from typing import NamedTuple


class Waiting(NamedTuple):
    """A request in the queue. Tokens of its prompt, and how many of them the cache holds now. `arrival` orders
    requests by age and names them: unique, smaller is older, the same at every call."""

    prompt_tokens: int
    cached_tokens: int
    arrival: int


class LocalScheduler:
    """Gives the order in which to take waiting requests; deterministic, so that all tensor-parallel ranks agree.

    Either tell it what changes (`put`, `drop`) and ask for the order (`arrange`) or for what is new in it (`slip_in`),
    or give it the whole queue each time (`order`). Only change costs time: those taken off the front are cut off, those
    that come are slipped in; where others moved or were taken, at most `groups` rising runs of slots are merged.
    """

    def __init__(self, groups: int = 10) -> None:
        """`groups`: P of the paper, at least 1 (ValueError otherwise)."""
        if groups < 1:
            raise ValueError(f"groups must be at least 1, not {groups}")
        round_length = lcm(*range(1, groups + 1))
        self._groups = groups
        self._strides = [round_length // (group + 1) for group in range(groups)]
        # Stride scheduling: a group's next slot stands at its pass; the least pass goes first.
        self._passes = [0] * groups
        # With fixed shares and level passes the strides alone take the oldest request within this many slots.
        self.patience = sum(range(1, groups + 1)) + groups
        self._overtaken = 0
        self._issued: list[int] = []  # the last order, without those taken
        # Where the slots of `_issued` stand, rising; empty if the oldest was put before its turn. A slot's place is its
        # pass less `_level` times `groups`, plus what lets the higher group go first at equal passes.
        self._places: list[int] = []
        self._level = 0
        self._members: list[list[int]] = [[] for _ in range(groups)]  # those of `_issued`, by group and age
        self._group_of: dict[int, int] = {}  # of those of `_issued`
        self._moves: dict[int, int] = {}  # the groups of those put since
        self._gone: set[int] = set()  # those of `_issued` dropped since

    def put(self, arrival: int, prompt_tokens: int, cached_tokens: int) -> None:
        """A request waits, or is known to have this share now. `arrival` as in `Waiting`."""
        share = cached_tokens * self._groups // max(prompt_tokens, 1)
        group = min(max(share, 0), self._groups - 1)
        self._gone.discard(arrival)
        if self._group_of.get(arrival) == group:
            self._moves.pop(arrival, None)
        else:
            self._moves[arrival] = group

    def drop(self, arrivals: Iterable[int]) -> None:
        """These requests wait no longer: they count as taken, in the last order. Unknown ones are ignored."""
        for arrival in arrivals:
            self._moves.pop(arrival, None)
            if arrival in self._group_of:
                self._gone.add(arrival)

    def arrange(self) -> list[int]:
        """The waiting requests by their arrival numbers, best first."""
        self.slip_in()
        return list(self._issued)

    def slip_in(self) -> list[tuple[int, int]] | None:
        """Bring the order up to date. If those that were in it and still wait keep their places among each other: the
        slots and arrival numbers of those that came, to be put in one after the other. None if the order is another."""
        is_in_order = not self._gone or self._settle()
        came: list[tuple[int, int]] | None = []
        if self._moves:
            came = self._move(is_in_order and bool(self._places))
        if not is_in_order or came is None:
            self._merge()
            return None
        return came

    def order(self, waiting: Sequence[Waiting]) -> list[int]:
        """Indices into `waiting`, all that wait, best first, each once. Requests of the last order that are now absent
        count as taken in that order."""
        index_of = {request.arrival: index for index, request in enumerate(waiting)}
        self.drop((self._group_of.keys() | self._moves.keys()) - index_of.keys())
        for prompt_tokens, cached_tokens, arrival in waiting:
            self.put(arrival, prompt_tokens, cached_tokens)
        return [index_of[arrival] for arrival in self.arrange()]

    def _settle(self) -> bool:
        """Charge the slots that were used since the last order to their groups. Whether those left keep their places
        among each other, as they do when the first ones were taken."""
        gone, self._gone = self._gone, set()
        if len(gone) == len(self._issued):
            # Nobody was left waiting: nothing is owed to anyone.
            self._passes = [0] * self._groups
            self._overtaken = 0
            self._issued.clear()
            self._places.clear()
            self._group_of.clear()
            for members in self._members:
                members.clear()
            return True
        oldest = self._oldest()
        taken = 0
        passed_over = False
        for arrival in self._issued:
            if arrival not in gone:
                passed_over = True
                continue
            group = self._leave(arrival)
            self._passes[group] += self._strides[group]
            self._overtaken += 1
            if arrival == oldest:
                self._overtaken = 0
                oldest = self._oldest()
            taken += 1
            if taken == len(gone):
                break
        if passed_over:
            return False
        del self._issued[:taken]
        del self._places[:taken]
        return True

    def _oldest(self) -> int:
        return min(members[0] for members in self._members if members)

    def _leave(self, arrival: int) -> int:
        """Take a request out of its group; which one that was."""
        group = self._group_of.pop(arrival)
        members = self._members[group]
        del members[bisect_left(members, arrival)]
        return group

    def _move(self, may_slip_in: bool) -> list[tuple[int, int]] | None:
        """Book those that came and those whose share has changed. If all of them are the youngest of their groups, and
        may be slipped in between the others: the slots and arrival numbers of these; None if they are not in order."""
        level = min((self._passes[group] for group, members in enumerate(self._members) if members), default=None)
        came: list[tuple[int, int]] = []
        for arrival, group in self._moves.items():
            if arrival in self._group_of:
                self._leave(arrival)
                may_slip_in = False
            members = self._members[group]
            if not members and level is not None:
                # A group that was empty starts level with the others: it has saved up nothing.
                self._passes[group] = max(self._passes[group], level)
            may_slip_in = may_slip_in and not (members and arrival < members[-1])
            insort(members, arrival)
            self._group_of[arrival] = group
            if may_slip_in:
                place = self._place(group) + (len(members) - 1) * self._strides[group] * self._groups
                slot = bisect_left(self._places, place)
                self._places.insert(slot, place)
                self._issued.insert(slot, arrival)
                came.append((slot, arrival))
        self._moves.clear()
        return came if may_slip_in and self._is_patient() else None

    def _place(self, group: int) -> int:
        """Of the first slot of a group."""
        return (self._passes[group] - self._level + 1) * self._groups - 1 - group

    def _merge(self) -> None:
        """Order the slots of all groups by their places. No slot of one group stands where one of another does, so the
        places name the requests."""
        groups = [group for group, members in enumerate(self._members) if members]
        self._level = min(self._passes[group] for group in groups)  # small numbers compare faster
        at_place: dict[int, int] = {}
        for group in groups:
            members, place, stride = self._members[group], self._place(group), self._strides[group] * self._groups
            at_place.update(zip(range(place, place + stride * len(members), stride), members, strict=True))
        self._places = sorted(at_place)
        self._issued = list(map(at_place.__getitem__, self._places))
        if not self._is_patient():
            self._issued = self._with_oldest(self._issued)
            self._places = []

    def _is_patient(self) -> bool:
        """Whether nobody is overtaken too often if the slots are taken as they stand. Between two slots of a group the
        strides leave less than `patience` others; so the oldest of all, which is the first of its group, could only be
        overtaken too often before the first slot of a group."""
        places = self._places
        latest = max(bisect_left(places, self._place(group)) for group, members in enumerate(self._members) if members)
        return self._overtaken + latest <= self.patience

    def _with_oldest(self, order: list[int]) -> list[int]:
        """Where the oldest was overtaken `patience` times, it goes next. Strides alone do not promise that when
        shares change, since a request may always stand in the group whose turn has just passed."""
        result: list[int] = []
        placed: set[int] = set()
        ages = iter(sorted(order))
        oldest: int | None = next(ages)
        overtaken = self._overtaken
        for arrival in order:
            while arrival not in placed:
                chosen = oldest if overtaken >= self.patience and oldest is not None else arrival
                placed.add(chosen)
                result.append(chosen)
                overtaken += 1
                if chosen == oldest:
                    overtaken = 0
                    oldest = next((older for older in ages if older not in placed), None)
        return result
