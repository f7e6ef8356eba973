"""What a decision of the global scheduler costs, in process: grow the prefix tree, then time decisions and completions.

The workload: 200 shared prefixes of an eighth to three quarters of the prompt (1,024 to 6,144 of 8,192 tokens), chosen
by Zipf(1.0), each prompt filled up with random tokens to one length. A decision is the whole of `RequestArrived`: hash,
match, choose, book, and what leaves a tree that stays at its bound. A completion is `FirstToken` and `RequestFinished`
together. A report is a worker's of `REPORTED` blocks, stored in as many new prompts as they make, or removed again.
Time and chance are the bench's own, so that a seed gives the same decisions each time; the garbage collector runs as in
the daemon.

Memory is the growth of the process while the tree grows, so it is that of the tree with holders and hits. The decisions
that `explain` remembers are bounded apart from it: only the newest few are kept here.
"""

from __future__ import annotations

import os
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from prebled.bench.decide_profile import Part, Profile, watched
from prebled.collector import settle
from prebled.core.blocks import HASH_BYTES, hash_path, namespace_seed
from prebled.core.cost import PROFILES
from prebled.core.decisions import Place
from prebled.core.events import FirstToken, KvReported, RequestArrived, RequestFinished, WorkerReady
from prebled.core.policies import make_policy
from prebled.core.scheduler import GlobalScheduler
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.errors import InternalError, SettingsError
from prebled.messages import Capacity, KvChange, KvRemoved, KvStored
from prebled.settings import CoreSettings

Mix: TypeAlias = Literal["exploit", "explore", "both"]
"""Which prompts are timed: those with more than half of their tokens shared, those with at most half, or all."""

REPORTED = 1000
"""Blocks that a worker reports at once."""

REPORTS = 50
"""So many times it does."""

PREFIXES = 200
VOCABULARY = 32_000
OUTPUT_TOKENS = 64
IN_FLIGHT = 2
"""Requests in flight for each worker while decisions are timed, unless told otherwise."""
RATE = 100.0
"""Arrivals a second of the bench's own time."""
BATCH = 250
"""Prompts that are timed one after another."""
NAMESPACE = namespace_seed("m", "", "")


class Spread(msgspec.Struct, frozen=True):
    """Of one duration, in microseconds."""

    p50: float
    p99: float
    mean: float


class DecideReport(msgspec.Struct, frozen=True):
    """`blocks`: distinct ones in the tree when the timing began. `per_s`: decisions, each with its completion, that one
    thread makes in a second. `stored_us`, `removed_us`: of a report of 1,000 blocks. `adjusted`: decisions that were
    rebalanced, replicated or steered, and `adjusted_us`, what they took. `parts`: of a decision, if they were asked
    for; they are of other decisions than `decide_us`, which no clocks hold up."""

    workers: int
    blocks: int
    decide_us: Spread
    hash_us: Spread
    finish_us: Spread
    per_s: float
    bytes_per_block: float
    policy: str
    mix: Mix
    stored_us: Spread
    removed_us: Spread
    adjusted: int
    adjusted_us: Spread | None
    parts: tuple[Part, ...] = ()


class Prompts:
    """The workload, without an end. `tokens` of each prompt as uint32 LE."""

    def __init__(self, prompt_tokens: int, seed: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._chance = random.Random(seed)
        self._ids = np.random.default_rng(seed)
        least, most = max(prompt_tokens // 8, 1), max(prompt_tokens * 3 // 4, 1)
        self._prefixes = [self._random(self._chance.randint(least, most)) for _ in range(PREFIXES)]

    def draw(self, count: int, mix: Mix = "both") -> list[bytes]:
        """The next prompts. Raises SettingsError where no prefix is of this mix."""
        weights = [
            1 / rank if mix == "both" or (2 * len(prefix) > 4 * self._prompt_tokens) == (mix == "exploit") else 0.0
            for rank, prefix in enumerate(self._prefixes, 1)
        ]
        if not any(weights):
            raise SettingsError(f"mix {mix!r}: no prompt of {self._prompt_tokens} tokens is of it", param="mix")
        prefixes = self._chance.choices(self._prefixes, weights, k=count)
        return [prefix + self._random(self._prompt_tokens - len(prefix) // 4) for prefix in prefixes]

    def fresh(self, count: int) -> list[bytes]:
        """Prompts that share nothing with any other."""
        return [self._random(self._prompt_tokens) for _ in range(count)]

    def _random(self, count: int) -> bytes:
        return self._ids.integers(0, VOCABULARY, count, np.uint32).astype("<u4").tobytes()


class _Run:
    """One scheduler under the workload: requests come, and end when enough younger ones have come."""

    def __init__(
        self, policy: str, workers: int, prompt_tokens: int, block_tokens: int, blocks: int, in_flight: int
    ) -> None:
        settings = CoreSettings(max_blocks=blocks, kept_decisions=1)
        self.policy = make_policy(policy, settings)
        self.scheduler = GlobalScheduler(
            self.policy,
            settings,
            block_tokens=block_tokens,
            max_waiting=in_flight * workers + 1,
            retry_after_s=1.0,
            cost=PROFILES["mistral-7b-a6000"],
        )
        # All workers together hold as much as the tree may, and each at least two prompts.
        kv_tokens = max(blocks // workers * block_tokens, 2 * (prompt_tokens + OUTPUT_TOKENS + block_tokens))
        capacity = Capacity("m", "sim", "sim", block_tokens, kv_tokens, kv_tokens, kv_tokens, VOCABULARY, 256)
        for index in range(workers):
            self.scheduler.handle(WorkerReady(WorkerId(f"w{index}"), Epoch(1), capacity), 0.0)
        self._arrivals = 0
        self._in_flight: deque[RequestId] = deque()
        self._most_in_flight = in_flight * workers
        self._workers = workers
        self.is_adjusted = False

    def arrive(self, tokens: bytes) -> int:
        """One decision; its nanoseconds. Whether it was adjusted stands in `is_adjusted`."""
        self._arrivals += 1
        event = RequestArrived(RequestId(f"req-{self._arrivals}"), tokens, OUTPUT_TOKENS, model="m")
        now = self._arrivals / RATE
        start = perf_counter_ns()
        decisions = self.scheduler.handle(event, now)
        taken = perf_counter_ns() - start
        if not isinstance(decisions[0], Place):
            raise InternalError(f"a request of the bench was not placed: {decisions[0]}")
        self._in_flight.append(event.request_id)
        self.is_adjusted = bool(decisions[0].placement.adjusted)
        return taken

    def report(self, number: int, changes: tuple[KvChange, ...]) -> int:
        """What one of the workers says of its cache; the nanoseconds of taking it in."""
        event = KvReported(WorkerId(f"w{number % self._workers}"), changes)
        start = perf_counter_ns()
        self.scheduler.handle(event, self._arrivals / RATE)
        return perf_counter_ns() - start

    def complete(self) -> int | None:
        """The completion of the oldest request, if there are enough in flight; its nanoseconds."""
        if len(self._in_flight) <= self._most_in_flight:
            return None
        request_id = self._in_flight.popleft()
        now = self._arrivals / RATE
        first = FirstToken(request_id, 0)
        finished = RequestFinished(request_id, OUTPUT_TOKENS)
        start = perf_counter_ns()
        self.scheduler.handle(first, now)
        self.scheduler.handle(finished, now)
        return perf_counter_ns() - start

    def tree_blocks(self) -> int:
        return self.scheduler.statistics().tree.blocks


def measure(
    *,
    policy: str,
    workers: int,
    prompt_tokens: int,
    block_tokens: int,
    blocks: int,
    seed: int = 0,
    mix: Mix = "both",
    decisions: int = 4000,
    in_flight: int = IN_FLIGHT,
    profile: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> DecideReport:
    """Grow, then time so many decisions, with so many requests in flight for each worker. `profile`: time the parts of
    as many more. `tell` hears about the growing. Raises SettingsError."""
    if not block_tokens <= prompt_tokens <= blocks * block_tokens:
        message = f"{blocks} blocks of {block_tokens} tokens, prompts of {prompt_tokens}: one does not fit the other"
        raise SettingsError(message, param="prompt_tokens")
    prompts = Prompts(prompt_tokens, seed)
    shape = (policy, workers, prompt_tokens, block_tokens, blocks, in_flight)
    _Run(*shape).arrive(*prompts.draw(1))  # what is loaded on first use
    run = _Run(*shape)
    settle()
    rss = _resident_bytes()
    for grown in _grow(run, prompts, blocks, prompt_tokens // block_tokens):
        tell(f"{grown} of {blocks} blocks")
    grown_bytes = _resident_bytes() - rss
    grown = run.tree_blocks()
    decide, finish, adjusted = _time_decisions(run, prompts, mix, decisions)
    hashed = _time_hashing(prompts.draw(BATCH, mix), block_tokens)
    parts = _profile(run, prompts, mix, decisions) if profile else ()
    stored, removed = _time_reports(run, prompts, block_tokens)
    return DecideReport(
        workers=workers,
        blocks=grown,
        decide_us=_spread(decide),
        hash_us=_spread(hashed),
        finish_us=_spread(finish),
        per_s=round(1e9 / (sum(decide) / len(decide) + sum(finish) / len(finish)), 1),
        bytes_per_block=round(grown_bytes / grown, 2),
        policy=policy,
        mix=mix,
        stored_us=_spread(stored),
        removed_us=_spread(removed),
        adjusted=len(adjusted),
        adjusted_us=_spread(adjusted) if adjusted else None,
        parts=parts,
    )


def _time_decisions(run: _Run, prompts: Prompts, mix: Mix, count: int) -> tuple[array[int], array[int], array[int]]:
    """Nanoseconds of each decision and of each completion, one after another; and of the decisions that were adjusted
    once more."""
    while run.complete() is None:
        run.arrive(*prompts.draw(1, mix))
    decide, finish, adjusted = array("q"), array("q"), array("q")
    while len(decide) < count:
        # Made beforehand, so that making them is not between the decisions.
        for tokens in prompts.draw(min(BATCH, count - len(decide)), mix):
            decide.append(run.arrive(tokens))
            if run.is_adjusted:
                adjusted.append(decide[-1])
            finish.append(run.complete() or 0)
    return decide, finish, adjusted


def _profile(run: _Run, prompts: Prompts, mix: Mix, count: int) -> tuple[Part, ...]:
    profile = Profile()
    with watched(profile, run.policy):
        for _ in range(-(-count // BATCH)):
            for tokens in prompts.draw(BATCH, mix):
                profile.begin()
                profile.end(run.arrive(tokens))
                run.complete()
    return profile.parts()


def _time_reports(run: _Run, prompts: Prompts, block_tokens: int) -> tuple[array[int], array[int]]:
    """Nanoseconds of each report of blocks that were stored, and of each that they were removed."""
    stored, removed = array("q"), array("q")
    for number in range(REPORTS):
        paths: list[bytes] = []
        while (lacking := REPORTED - sum(map(len, paths)) // HASH_BYTES) > 0:
            [tokens] = prompts.fresh(1)
            paths.append(hash_path(tokens, block_tokens, NAMESPACE)[: lacking * HASH_BYTES])
        stored.append(run.report(number, tuple(KvStored(b"", path) for path in paths)))
        removed.append(run.report(number, (KvRemoved(b"".join(path[:HASH_BYTES] for path in paths)),)))
    return stored, removed


def _grow(run: _Run, prompts: Prompts, blocks: int, most_new: int) -> Iterator[int]:
    """Send requests until the next one might pass the tree's bound; the blocks so far, every now and then."""
    while (grown := run.tree_blocks()) + most_new <= blocks:
        yield grown
        for _ in range(max((blocks - grown) // most_new // 4, 1)):
            run.arrive(*prompts.draw(1))
            run.complete()


def _time_hashing(prompts: list[bytes], block_tokens: int) -> array[int]:
    taken = array("q")
    for tokens in prompts:
        start = perf_counter_ns()
        hash_path(tokens, block_tokens, NAMESPACE)
        taken.append(perf_counter_ns() - start)
    return taken


def _spread(nanoseconds: array[int]) -> Spread:
    us = np.array(nanoseconds) / 1000
    return Spread(*(round(float(value), 2) for value in (np.median(us), np.percentile(us, 99), us.mean())))


def _resident_bytes() -> int:
    """Physical memory of this process (Linux)."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
