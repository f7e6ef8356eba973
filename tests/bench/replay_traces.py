"""Small traces for replays, and replays that tell what was heard of them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import msgspec
import pytest
import xxhash

import prebled.bench.replay_loop as replay_module
from prebled.bench.replay import ReplaySettings, replay
from prebled.bench.replay_profiles import Profile
from prebled.bench.replay_report import ReplayResult
from prebled.bench.replay_worker import ReplayWorker
from prebled.bench.trace import Trace, TraceRequest
from prebled.core.cost import profile
from prebled.core.decisions import AnyDecision
from prebled.core.events import AnyEvent
from prebled.core.scheduler import GlobalScheduler

COST = profile("mistral-7b-a6000")
BLOCK_TOKENS = 4


def path(words: Iterable[object]) -> bytes:
    """One block for each word; equal words to the left of it and in it, equal hash."""
    chained = accumulate(words, lambda seed, word: xxhash.xxh3_64_intdigest(repr(word).encode(), seed), initial=0)
    return array("Q", list(chained)[1:]).tobytes()


def request(
    arrival_s: float, prompt_tokens: int, output_tokens: int, words: Iterable[object], **more: Any
) -> TraceRequest:
    """`words` name the prompt's blocks; what is missing of them is the request's own."""
    blocks = [*words][: prompt_tokens // BLOCK_TOKENS]
    blocks += [(arrival_s, len(blocks) + more) for more in range(prompt_tokens // BLOCK_TOKENS - len(blocks))]
    return TraceRequest(arrival_s, prompt_tokens, output_tokens, path(blocks), **more)


def trace(*requests: TraceRequest, is_closed_loop: bool = False) -> Trace:
    return Trace("made", BLOCK_TOKENS, requests, is_closed_loop)


def random_trace(seed: int, count: int = 60) -> Trace:
    """Prompts of three families that share their beginnings, in calm and in bursts."""
    rng = random.Random(seed)
    requests, now = [], 0.0
    for number in range(count):
        now += rng.expovariate(rng.choice((3, 30)))
        prompt_tokens = rng.randint(1, 120)
        shared = rng.randint(0, prompt_tokens // BLOCK_TOKENS)
        family = rng.randrange(3)
        requests.append(request(now, prompt_tokens, rng.randint(1, 80), [(family, block) for block in range(shared)]))
        assert len(requests) == number + 1
    return trace(*requests)


def run(
    made: Trace, policy: str = "e2", *, workers: int = 1, kv_tokens: int = 4000, rate_scale: float = 1.0, **options: Any
) -> ReplayResult:
    return replay(
        made,
        policy,
        workers=workers,
        profile=Profile("test", COST, kv_tokens),
        rate_scale=rate_scale,
        settings=ReplaySettings(**options),
    )


def same_figures(result: ReplayResult) -> ReplayResult:
    """Without what depends on the machine."""
    report = msgspec.structs.replace(
        result.report, wall_seconds=0.0, decide_us=msgspec.structs.replace(result.report.decide_us, p50=0.0, p99=0.0)
    )
    return msgspec.structs.replace(result, report=report)


class Heard:
    """What the scheduler and the workers of the replays since were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[float, AnyEvent]] = []
        self.workers: list[ReplayWorker] = []
        heard = self

        class Recording(GlobalScheduler):
            def handle(self, event: AnyEvent, now: float) -> list[AnyDecision]:
                heard.events.append((now, event))
                return super().handle(event, now)

        def worker(*args: Any, **options: Any) -> ReplayWorker:
            heard.workers.append(ReplayWorker(*args, **options))
            return heard.workers[-1]

        monkeypatch.setattr(replay_module, "GlobalScheduler", Recording)
        monkeypatch.setattr(replay_module, "ReplayWorker", worker)

    def clear(self) -> None:
        self.events, self.workers = [], []

    def of(self, kind: type, request_id: str = "") -> list[tuple[float, Any]]:
        return [
            (now, event)
            for now, event in self.events
            if isinstance(event, kind) and (not request_id or event.request_id == request_id)  # type: ignore[union-attr]
        ]
