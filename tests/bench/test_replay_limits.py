"""Replays that are given up: never one that would have kept its limits, and soon one that is far beyond them."""

from __future__ import annotations

from statistics import mean

import msgspec
import pytest
from replay_traces import COST, Heard, random_trace, request, run, same_figures, trace

from prebled.bench.lab import runs
from prebled.bench.lab.cases import Case
from prebled.bench.lab.crew import try_run
from prebled.bench.lab.runs import Outcome, Run, Setup, carry_out
from prebled.bench.replay import BeyondLimits, Limits
from prebled.bench.replay_report import DIGITS, ReplayResult
from prebled.bench.trace import Trace
from prebled.core.events import FirstToken, RequestArrived, RequestFinished

SERVICE_S = COST.prefill_step_s(512, 512)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


def is_given_up(made: Trace, limits: Limits, **options: object) -> bool:
    try:
        run(made, limits=limits, **options)  # type: ignore[arg-type]
    except BeyondLimits:
        return True
    return False


def burst(count: int, output_tokens: int = 1) -> Trace:
    """Prompts that fill a step, all at once: the first token of the n-th comes after n steps."""
    return trace(*(request(0.0, 512, output_tokens, [number]) for number in range(count)))


# --- when ---


def test_it_ends_when_what_has_passed_is_enough(heard: Heard) -> None:
    """After n of 1000 steps the sum of all waiting times is 1000 n steps, less those that n requests waited less."""
    assert is_given_up(burst(1000), Limits(ttft_mean_s=100 * SERVICE_S), chunk_tokens=512)
    assert len(heard.of(RequestArrived)) == 1000
    # 1000 n - n (n - 1) / 2 > 100 000 from n = 107 on; a look is taken every 125 ends at most
    assert 106 <= len(heard.of(RequestFinished)) <= 107 + 125


def test_it_ends_when_too_many_are_late_for_certain(heard: Heard) -> None:
    """After 100 steps all that still wait of 1000 are late; then at the next look it is known."""
    assert is_given_up(burst(1000), Limits(ttft_s=100 * SERVICE_S, in_time=0.5), chunk_tokens=512)
    assert 100 <= len(heard.of(RequestFinished)) <= 101 + 125


def test_it_does_not_end_at_a_limit_that_is_just_kept() -> None:
    limits = Limits(ttft_mean_s=100.6 * SERVICE_S, ttft_s=100.5 * SERVICE_S, in_time=0.5)
    assert not is_given_up(burst(200), limits, chunk_tokens=512)  # the mean is 100.5 steps
    assert is_given_up(burst(204), limits, chunk_tokens=512)


def test_slow_tokens_make_a_request_late_before_it_ends(heard: Heard) -> None:
    made = trace(*(request(0.01 * number, 20, 2000, [number]) for number in range(100)))
    assert is_given_up(made, Limits(tpot_s=0.0, in_time=0.9), kv_tokens=1_000_000)
    assert heard.of(FirstToken)
    assert not heard.of(RequestFinished)


def test_a_refused_request_ends_it(heard: Heard) -> None:
    made = trace(request(0.0, 10, 5, []), request(0.1, 500, 5, []), request(60.0, 60, 5, []))
    assert is_given_up(made, Limits(), kv_tokens=80)
    assert len(heard.of(RequestArrived)) == 2


def test_a_replay_within_limits_is_the_same_as_without() -> None:
    limits = Limits(ttft_mean_s=1e9, ttft_s=1e9, tpot_s=1e9, in_time=1.0)
    made = random_trace(3)
    assert same_figures(run(made, limits=limits)) == same_figures(run(made))


# --- the same decision as of the whole ---


def share_in_time(result: ReplayResult, limits: Limits, made: Trace) -> float:
    tpots = iter(result.tpot_s)
    late = sum(
        limits.is_late(ttft_s, next(tpots) if one.output_tokens > 1 else 0.0)
        for one, ttft_s in zip(made.requests, result.ttft_s, strict=True)
    )
    return 1 - late / len(made.requests)


@pytest.mark.parametrize("seed", range(8))
def test_no_replay_that_keeps_its_limits_is_given_up(seed: int) -> None:
    """Limits all about what the whole replay finds, to the last digit of its report."""
    made = random_trace(seed, 200)
    options = {"rate_scale": (1.0, 4.0)[seed % 2], "kv_tokens": (400, 2000)[seed // 2 % 2]}
    whole = run(made, **options)  # type: ignore[arg-type]
    times = sorted(whole.ttft_s)
    given_up = []
    for mean_s in (mean(times) * 0.5, round(mean(times), DIGITS), mean(times) + 10**-DIGITS, mean(times) * 1.01):
        stopped = is_given_up(made, Limits(ttft_mean_s=mean_s), **options)
        assert not (stopped and whole.report.ttft_s.mean < mean_s)
        given_up.append(stopped)
    for ttft_s in (times[20], times[197], times[198]):
        for tpot_s in (max(whole.tpot_s), min(whole.tpot_s)):
            limits = Limits(ttft_s=ttft_s, tpot_s=tpot_s, in_time=0.99)
            stopped = is_given_up(made, limits, **options)
            assert not (stopped and share_in_time(whole, limits, made) >= 0.99)
            given_up.append(stopped)
    assert {True, False} == {*given_up}


@pytest.mark.parametrize("source", ["toolbench", "programming", "embodied", "toolbench*2+videoqa"])
@pytest.mark.parametrize("policy", ["e2", "round-robin"])
def test_a_search_decides_as_by_whole_replays(source: str, policy: str) -> None:
    given_up = []
    for scale in (0.1, 1.0, 3.0, 10.0, 100.0):
        whole = Run(Case("made", f"workload:{source}"), Setup(policy, policy), 1, 0, scale, 400)
        given_up += given_up_rightly(whole)
    assert {True, False} == {*given_up}


@pytest.mark.parametrize("sessions", [1, 40, 160])
def test_a_search_in_a_closed_loop_does_as_well(monkeypatch: pytest.MonkeyPatch, sessions: int) -> None:
    turns = [
        request(float(turn), 4000, 20, [(session, turn)], session=str(session), think_s=3.0 * turn)
        for session in range(sessions)
        for turn in range(3)
    ]
    made = trace(*turns, is_closed_loop=True)
    monkeypatch.setattr(runs, "load", lambda case, seed, limit: made)
    given_up = given_up_rightly(Run(Case("made", ""), Setup("e2", "e2"), 1, 0, 1.0, None))
    assert given_up[0] == (sessions == 160)


def given_up_rightly(run: Run) -> list[bool]:
    """Whether the run is given up when it asks for capacity, and for goodput; in any case it comes to the same."""
    whole = carry_out(run)
    given_up = []
    for asks, holds in (("capacity", whole.is_stable), ("goodput", whole.is_good)):
        found = try_run(msgspec.structs.replace(run, asks=asks))
        given_up.append(not isinstance(found, Outcome))
        if isinstance(found, Outcome):
            assert (found.is_stable, found.is_good) == (whole.is_stable, whole.is_good)
            assert (found.ttft_mean, found.in_time) == (whole.ttft_mean, whole.in_time)
        else:
            assert not holds
    return given_up
