"""Replays against closed forms, against themselves step by step, and against what a daemon would tell its scheduler."""

from __future__ import annotations

import pickle
import random

import pytest
from replay_traces import (
    BLOCK_TOKENS,
    COST,
    Heard,
    path,
    random_trace,
    request,
    run,
    same_figures,
    trace,
)

import prebled.bench.replay_loop as replay_module
from prebled.bench.replay import ReplaySettings, replay
from prebled.core.blocks import cacheable_blocks
from prebled.core.decisions import AnyDecision, WantSnapshot
from prebled.core.events import (
    AnyEvent,
    FirstToken,
    KvReported,
    KvSnapshotTaken,
    RequestArrived,
    RequestFinished,
    RequestLost,
    TokensMade,
    WorkerLoad,
)
from prebled.core.scheduler import GlobalScheduler
from prebled.errors import SettingsError
from prebled.messages import KvRemoved, KvStored


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


# --- closed forms ---


def test_one_request_takes_its_prefill_and_its_decode_steps() -> None:
    result = run(trace(request(0.0, 700, 40, [])), chunk_tokens=512)
    first_s = COST.prefill_step_s(512, 512) + COST.prefill_step_s(188, 700)
    assert result.ttft_s == [pytest.approx(first_s, abs=1e-9)]
    rest_s = sum(COST.decode_step_s(1, 700 + made) for made in range(1, 40))
    assert result.e2e_s == [pytest.approx(first_s + rest_s, abs=1e-9)]
    assert result.tpot_s == [pytest.approx(rest_s / 39, abs=1e-9)]
    assert result.queue_s == [0.0]
    assert result.report.sim_seconds == pytest.approx(first_s + rest_s, abs=1e-6)


def test_prompts_that_fill_a_step_are_a_queue_with_one_server() -> None:
    rng = random.Random(5)
    service_s = COST.prefill_step_s(512, 512)
    share = 0.6
    arrivals, now = [], 0.0
    for _ in range(4000):
        now += rng.expovariate(share / service_s)
        arrivals.append(now)
    result = run(trace(*(request(at, 512, 1, []) for at in arrivals)), chunk_tokens=512, kv_delay_s=None)
    wait_s, free_at = [], 0.0
    for at in arrivals:
        wait_s.append(max(free_at - at, 0.0))
        free_at = max(free_at, at) + service_s
    assert result.queue_s == pytest.approx(wait_s, abs=1e-9)
    # Pollaczek and Khinchine, for as many as there are
    assert sum(wait_s) / len(wait_s) == pytest.approx(service_s * share / (2 * (1 - share)), rel=0.1)
    assert result.e2e_s == result.ttft_s == pytest.approx([wait + service_s for wait in wait_s], abs=1e-9)


def test_with_room_for_all_every_known_prefix_is_hit() -> None:
    requests = [
        request(100.0 * number, one.prompt_tokens, 1, []) for number, one in enumerate(random_trace(1).requests)
    ]
    known: set[bytes] = set()
    hit = 0
    shared = random_trace(1).requests
    calm = [
        type(one)(after.arrival_s, one.prompt_tokens, 1, one.path) for one, after in zip(shared, requests, strict=True)
    ]
    for one in calm:
        blocks = [one.path[at : at + 8] for at in range(0, len(one.path), 8)]
        most = cacheable_blocks(one.prompt_tokens, BLOCK_TOKENS)
        hit += sum(block in known for block in blocks[:most]) * BLOCK_TOKENS
        known.update(blocks)
    assert hit > 0
    result = run(trace(*calm), kv_tokens=100_000)
    assert result.report.hit_ratio == pytest.approx(hit / sum(one.prompt_tokens for one in calm), abs=1e-6)


def test_with_steps_of_one_length_decoding_runs_share_them() -> None:
    """Both prompts are computed in one step, then both decode together until the first ends."""
    result = run(trace(request(0.0, 40, 10, ["one"]), request(0.0, 60, 30, ["other"])))
    prefill_s = COST.prefill_base_s + COST.prefill_token_s * 100
    prefill_s = max(prefill_s, COST.prefill_floor_s)
    prefill_s += COST.prefill_context_s * 100 + COST.prefill_token_context_s * (40 * 40 + 60 * 60)
    both_s = sum(COST.decode_step_s(2, 100 + 2 * made) for made in range(1, 10))
    alone_s = sum(COST.decode_step_s(1, 60 + made) for made in range(10, 30))
    assert result.ttft_s == [pytest.approx(prefill_s, abs=1e-9)] * 2
    assert result.e2e_s == pytest.approx([prefill_s + both_s, prefill_s + both_s + alone_s], abs=1e-9)


# --- jumps ---


@pytest.mark.parametrize("seed", range(24))
def test_jumps_give_what_single_steps_give(heard: Heard, seed: int) -> None:
    rng = random.Random(1000 + seed)
    made = random_trace(seed)
    options = {
        "workers": 2,
        "kv_tokens": rng.choice((240, 400, 1600)),
        "chunk_tokens": rng.choice((30, 200)),
        "max_running": rng.choice((2, 5, 50)),
        "queue_policy": rng.choice(("groups", "fcfs")),
        "is_length_known": rng.random() < 0.5,
    }
    jumped = run(made, jumps=True, **options)
    told, steps = heard.events, [worker.batch.decodes.step for worker in heard.workers]
    heard.clear()
    stepped = run(made, jumps=False, **options)
    assert [event for _, event in told] == [event for _, event in heard.events]
    assert [now for now, _ in told] == pytest.approx([now for now, _ in heard.events], abs=1e-9)
    assert steps == [worker.batch.decodes.step for worker in heard.workers]
    for name in ("ttft_s", "tpot_s", "e2e_s", "queue_s"):
        assert getattr(jumped, name) == pytest.approx(getattr(stepped, name), abs=1e-9)
    assert (jumped.retractions, jumped.report.hit_ratio) == (stepped.retractions, stepped.report.hit_ratio)


def test_runs_that_outgrow_the_cache_are_retracted_and_still_end() -> None:
    made = trace(*(request(0.01 * number, 30, 300, []) for number in range(6)))
    known, guessed = (run(made, kv_tokens=1200, is_length_known=is_known) for is_known in (True, False))
    assert known.retractions == 0
    assert guessed.retractions > 0
    assert known.report.completed == guessed.report.completed == 6


# --- conservation and order ---


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_once_and_leaves_nothing(heard: Heard, seed: int) -> None:
    made = random_trace(seed)
    result = run(made, "round-robin", workers=3, kv_tokens=400)
    report = result.report
    assert (report.requests, report.completed, report.failed) == (60, 60, 0)
    ends = [event.request_id for _, event in heard.of(RequestFinished)]
    assert sorted(ends) == sorted(f"r{number}" for number in range(60))
    cached_tokens = sum(event.cached_tokens for _, event in heard.of(FirstToken))
    prompt_tokens = sum(one.prompt_tokens for one in made.requests)
    assert sum(worker.prefilled_tokens for worker in heard.workers) + cached_tokens == prompt_tokens
    assert report.hit_ratio == pytest.approx(cached_tokens / prompt_tokens, abs=1e-6)
    for worker in heard.workers:
        worker.batch.check_invariants()
        assert (len(worker.batch), worker.batch.cache.held_blocks) == (0, 0)
    for queue_s, ttft_s, e2e_s in zip(result.queue_s, result.ttft_s, result.e2e_s, strict=True):
        assert 0 <= queue_s < ttft_s <= e2e_s


def test_the_same_replay_twice_is_the_same_to_the_last_digit() -> None:
    first, second = (run(random_trace(9), workers=2, kv_tokens=400) for _ in range(2))
    assert same_figures(first) == same_figures(second)
    assert pickle.loads(pickle.dumps(first)) == first


def test_twice_the_rate_is_half_the_time_between_arrivals(heard: Heard) -> None:
    made = random_trace(2)
    run(made, rate_scale=2.0)
    assert [now for now, _ in heard.of(RequestArrived)] == [one.arrival_s / 2 for one in made.requests]


def test_what_fits_no_worker_fails_with_its_reason_and_nothing_else_does() -> None:
    result = run(trace(request(0.0, 10, 5, []), request(0.1, 500, 5, []), request(0.2, 60, 5, [])), kv_tokens=80)
    assert result.failures == {"context_length_exceeded": 1}
    assert (result.report.completed, result.report.failed) == (2, 1)
    assert len(result.e2e_s) == 2


def test_a_queue_of_any_length_is_accepted() -> None:
    made = trace(*(request(0.0, 400, 1, []) for _ in range(1500)))
    assert run(made, kv_tokens=500, kv_delay_s=None).report.completed == 1500


# --- closed loop ---


def test_the_next_turn_comes_after_the_answer_and_finds_it_cached(heard: Heard) -> None:
    answer = [("a", 10), ("b", 11), ("c", 12)]
    first = [("s", block) for block in range(10)]
    second = [*first, *answer, ("more", 13)]
    made = trace(
        request(1.0, 42, 12, first, session="s", next_path=path(second)),
        request(99.0, 58, 2, second, session="s", think_s=7.0),
        request(1.5, 30, 1, [], session="other"),
        is_closed_loop=True,
    )
    result = run(made)
    arrivals = {event.request_id: now for now, event in heard.of(RequestArrived)}
    ends = {event.request_id: now for now, event in heard.of(RequestFinished)}
    assert arrivals == {"r0": 1.0, "r1": ends["r0"] + 7.0, "r2": 1.5}
    # Of 54 tokens of the first turn the last was never computed: 13 blocks of 4.
    assert [event.cached_tokens for _, event in heard.of(FirstToken, "r1")] == [52]
    assert result.report.completed == 3
    unknown = trace(*(type(one)(**{**_fields(one), "next_path": b""}) for one in made.requests), is_closed_loop=True)
    heard.clear()
    run(unknown)
    assert [event.cached_tokens for _, event in heard.of(FirstToken, "r1")] == [40]


def _fields(one: object) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__struct_fields__}  # type: ignore[attr-defined]


def test_a_session_goes_on_after_a_turn_that_was_refused() -> None:
    made = trace(
        request(0.0, 500, 12, [], session="s"), request(0.0, 20, 2, [], session="s", think_s=1.0), is_closed_loop=True
    )
    result = run(made, kv_tokens=100)
    assert (result.report.completed, result.report.failed) == (1, 1)


# --- what the scheduler hears ---


def test_the_scheduler_hears_what_the_daemon_would_tell_it(heard: Heard) -> None:
    run(trace(request(0.0, 20, 40, [])))
    ends_at = [COST.prefill_step_s(20, 20)]
    for made in range(1, 40):
        ends_at.append(ends_at[-1] + COST.decode_step_s(1, 20 + made))
    ((first_at, _),) = heard.of(FirstToken)
    assert first_at == pytest.approx(ends_at[0], abs=1e-9)
    marks = [(now, event.output_tokens) for now, event in heard.of(TokensMade)]
    assert [made for _, made in marks] == [16, 32]
    assert [now for now, _ in marks] == pytest.approx([ends_at[15], ends_at[31]], abs=1e-9)
    ((end_at, end),) = heard.of(RequestFinished)
    assert (end.output_tokens, end_at) == (40, pytest.approx(ends_at[39], abs=1e-9))
    beats = heard.of(WorkerLoad)
    assert [now for now, _ in beats] == [0.5]
    # after 0.5 s: the blocks of the prompt and of what is computed, or being computed, of the output
    made = sum(at < 0.5 for at in ends_at)
    blocks = -(-(20 + made) // BLOCK_TOKENS)
    assert beats[0][1] == WorkerLoad("w0", 0, 1, blocks * BLOCK_TOKENS)


def test_beats_stop_when_all_workers_have_said_that_they_are_idle(heard: Heard) -> None:
    run(trace(request(0.2, 20, 1, []), request(100.1, 20, 30, []), request(200.0, 20, 1, [])), "round-robin", workers=2)
    beats = [(now, event.worker_id, event.running) for now, event in heard.of(WorkerLoad)]
    # The first request came and went between two beats; the second ran for 0.8 s.
    assert beats == [(100.5, "w1", 1), (101.0, "w1", 0)]


def test_the_cache_is_reported_some_time_after_it_changed(heard: Heard) -> None:
    made = trace(request(0.0, 40, 1, ["a"] * 10), request(10.0, 40, 1, ["b"] * 10), request(20.0, 1, 1, []))
    run(made, kv_tokens=60, kv_delay_s=0.25)
    first_s = COST.prefill_step_s(40, 40)
    stored = path(["a"] * 10)
    (first_at, first), (second_at, second), *more = heard.of(KvReported)
    assert first_at == pytest.approx(first_s + 0.25, abs=1e-9)
    assert first.changes == (KvStored(b"", stored),)
    # Room for the second is made when its step begins; its own blocks come within the delay.
    assert second_at == pytest.approx(10.25, abs=1e-9)
    assert second.changes == (KvRemoved(stored[:8]), KvStored(b"", path(["b"] * 10)))
    assert not more
    heard.clear()
    run(made, kv_tokens=60, kv_delay_s=None)
    assert not heard.of(KvReported)


def test_a_snapshot_that_is_wanted_comes_in_place_of_the_changes(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = replay_module.GlobalScheduler

    class Missing(recording):  # type: ignore[misc,valid-type]
        """It has missed the first report."""

        def handle(self, event: AnyEvent, now: float) -> list[AnyDecision]:
            if isinstance(event, KvReported) and not heard.of(KvReported):
                heard.events.append((now, event))
                return [WantSnapshot(event.worker_id)]
            decisions: list[AnyDecision] = super().handle(event, now)
            return decisions

    monkeypatch.setattr(replay_module, "GlobalScheduler", Missing)
    words = ["a"] * 10
    run(trace(request(0.0, 40, 1, words), request(10.0, 60, 1, words), request(20.0, 1, 1, [])), kv_delay_s=0.25)
    (missed_at, _), (_, second) = heard.of(KvReported)
    ((taken_at, taken),) = heard.of(KvSnapshotTaken)
    assert taken_at == pytest.approx(missed_at + 0.25, abs=1e-9)
    assert taken.runs == (KvStored(b"", path(words)),)
    assert [change.parent for change in second.changes] == [path(words)[-8:]]


def test_a_request_that_its_worker_lost_goes_on_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(GlobalScheduler):
        """The first request is lost when it has made 16 tokens."""

        def handle(self, event: AnyEvent, now: float) -> list[AnyDecision]:
            decisions = super().handle(event, now)
            if isinstance(event, TokensMade) and event.output_tokens == 16 and event.request_id == "r0":
                lost.append(now)
                if len(lost) == 1:
                    decisions += super().handle(RequestLost(event.request_id), now)
            return decisions

    lost: list[float] = []
    monkeypatch.setattr(replay_module, "GlobalScheduler", Losing)
    result = run(trace(request(0.0, 20, 40, []), request(0.1, 30, 60, [])), "round-robin", workers=3)
    assert result.report.completed == 2
    assert result.report.decisions.explore == 3
    # It was prefilled again from its prompt and 16 tokens, made 24 more, and was still one request.
    again_s = COST.prefill_step_s(36, 36) + sum(COST.decode_step_s(1, 36 + made) for made in range(1, 24))
    assert result.e2e_s[0] == pytest.approx(lost[0] + again_s, abs=1e-9)
    assert result.ttft_s[0] == pytest.approx(COST.prefill_step_s(20, 20), abs=1e-9)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"policy": "tarot"}, r"'tarot'.*round-robin"),
        ({"workers": 0}, "workers is 0"),
        ({"rate_scale": 0.0}, "rate_scale is 0"),
        ({"kv_tokens": 7}, "kv_tokens is 7"),
        ({"settings": ReplaySettings(queue_policy="lpm")}, "'lpm'"),
        ({"profile": "abacus"}, r"'abacus'.*mistral-7b-a6000.*custom:FILE"),
    ],
)
def test_impossible_values_are_named(options: dict[str, object], named: str) -> None:
    chosen = {"policy": "e2", "workers": 1, "profile": "mistral-7b-a6000", **options}
    with pytest.raises(SettingsError, match=named):
        replay(random_trace(0), chosen.pop("policy"), **chosen)  # type: ignore[arg-type]
