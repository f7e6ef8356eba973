"""The lab's parts: the search for limits, the notebook, what a run comes to, the campaign and its cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from lab_outcomes import outcome

from prebled.bench.lab import crew as crew_module
from prebled.bench.lab import runs
from prebled.bench.lab.campaign import Plan, run_campaign
from prebled.bench.lab.cases import Case, cases
from prebled.bench.lab.crew import Crew, Notebook, fingerprint
from prebled.bench.lab.runs import Run, Setup, carry_out, key_of
from prebled.bench.lab.search import MOST_STRIDES, STRIDE, highest
from prebled.bench.replay import ReplayResult, replay
from prebled.errors import SettingsError

E2 = Setup("e2", "e2")
TINY = Case("tiny", "workload:toolbench")


def tiny(setup: Setup = E2, **changes: object) -> Run:
    return msgspec.structs.replace(Run(TINY, setup, 2, 0, 1.0, 30), **changes)


class Limit:
    """Holds up to a limit, and remembers what was asked."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.asked: list[float] = []

    def __call__(self, rate: float) -> bool:
        self.asked.append(rate)
        return rate <= self.limit


# --- the search ---


@pytest.mark.parametrize("limit", [0.013, 0.7, 1.0, 1.01, 4.0, 900.0])
def test_the_limit_is_found_from_far_below_and_far_above(limit: float) -> None:
    holds = Limit(limit)
    found = highest(holds, 1.0, precision=0.03)
    assert found <= limit < found * 1.03
    assert found in holds.asked
    assert len(holds.asked) == len(set(holds.asked))


def test_what_holds_nowhere_has_no_limit() -> None:
    holds = Limit(0.0)
    assert highest(holds, 3.0, precision=0.03) == 0.0
    assert holds.asked[0] == 3.0
    assert len(holds.asked) == MOST_STRIDES
    few = Limit(0.0)
    assert highest(few, 3.0, precision=0.03, most_strides=4) == 0.0
    assert min(few.asked) == pytest.approx(3.0 / STRIDE**3)


def test_what_holds_everywhere_is_followed_so_far_and_no_further() -> None:
    assert highest(lambda rate: True, 2.0, precision=0.03, most_strides=4) == pytest.approx(2.0 * STRIDE**3)


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_limit_is_found_within_its_noise(seed: int) -> None:
    def holds(rate: float) -> bool:
        if rate < 9.0 or rate > 11.0:
            return rate < 9.0
        return hash((seed, rate)) % 2 == 0  # hashes of numbers are the same in every process

    found = highest(holds, 1.0, precision=0.03)
    assert 9.0 / 1.03 < found <= 11.0
    assert holds(found)


# --- the notebook ---


def test_a_notebook_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, second = tiny(), tiny(rate_scale=2.0)
    notebook = Notebook(tmp_path)
    assert notebook.get(first) is None
    notebook.add(outcome(key=key_of(first), ttft=1.5))
    notebook.add(outcome(key=key_of(second), ttft=2.5))
    again = Notebook(tmp_path)
    assert again.get(first) == outcome(key=key_of(first), ttft=1.5)
    assert again.get(second) == outcome(key=key_of(second), ttft=2.5)
    assert again.get(tiny(seed=1)) is None


def test_a_line_that_was_cut_short_is_carried_out_again(tmp_path: Path) -> None:
    first, second = tiny(), tiny(rate_scale=2.0)
    notebook = Notebook(tmp_path)
    notebook.add(outcome(key=key_of(first)))
    notebook.add(outcome(key=key_of(second)))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    cut = Notebook(tmp_path)
    assert cut.get(first) is not None
    assert cut.get(second) is None
    cut.add(outcome(key=key_of(second)))
    whole = Notebook(tmp_path)
    assert (whole.get(first), whole.get(second)) == (outcome(key=key_of(first)), outcome(key=key_of(second)))


def test_a_key_names_everything_that_a_run_depends_on() -> None:
    others = [
        tiny(case=msgspec.structs.replace(TINY, source="workload:loogle")),
        tiny(case=msgspec.structs.replace(TINY, profile="llama-3-70b-h100")),
        tiny(case=msgspec.structs.replace(TINY, kv_tokens=100_000)),
        tiny(Setup("e2", "lmetric")),
        tiny(Setup("e2", "e2", {"e2_sharing": 0.0})),
        tiny(Setup("e2", "e2", {}, "fcfs")),
        tiny(workers=3),
        tiny(seed=1),
        tiny(rate_scale=1.5),
        tiny(limit=None),
        tiny(asks="capacity"),
        tiny(asks="goodput"),
    ]
    assert len({key_of(run) for run in [tiny(), tiny(), *others]}) == 1 + len(others)


def test_outcomes_of_other_code_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Notebook(tmp_path).add(outcome(key=key_of(tiny())))
    monkeypatch.setattr(crew_module, "fingerprint", lambda: "other")
    assert Notebook(tmp_path).get(tiny()) is None


def test_the_fingerprint_follows_the_code_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "prebled"
    names = ["core/e2.py", "settings.py", "worker/sim_batch.py", "worker/link.py", "bench/replay.py", "bench/serve.py"]
    for name in names:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("before")
    monkeypatch.setattr(crew_module.prebled, "__file__", str(package / "__init__.py"))
    before = fingerprint()
    changed = []
    for name in names:
        (package / name).write_text("after")
        if fingerprint() != before:
            changed.append(name)
        (package / name).write_text("before")
    assert changed == ["core/e2.py", "settings.py", "worker/sim_batch.py", "bench/replay.py"]


# --- runs ---


def test_a_run_comes_to_an_outcome() -> None:
    found = carry_out(tiny(rate_scale=2.0))
    assert (found.case, found.label, found.workers, found.seed) == ("tiny", "e2", 2, 0)
    assert (found.requests, found.failed, found.rate_scale) == (30, 0, 2.0)
    assert found.rate * found.span_s == pytest.approx(30)
    assert 0 < found.ttft_mean < found.e2e_mean
    assert found.key == key_of(tiny(rate_scale=2.0))
    again = carry_out(tiny(rate_scale=2.0))
    timings = dict.fromkeys(("decide_p50_us", "decide_p99_us", "wall_s"), 0.0)
    assert msgspec.structs.replace(again, **timings) == msgspec.structs.replace(found, **timings)


def test_requests_are_in_time_by_both_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [request.output_tokens for request in runs.load(TINY, 0, 30).requests]
    assert min(outputs) > 1
    ttft_s, tpot_s = [1.0] * 30, [0.1] * 30
    ttft_s[3] = ttft_s[4] = 5.1
    tpot_s[4] = tpot_s[5] = 0.21
    assert made(monkeypatch, ttft_s, tpot_s).in_time == pytest.approx(27 / 30)
    assert not made(monkeypatch, ttft_s, tpot_s).is_good
    assert made(monkeypatch, [5.0] * 30, [0.2] * 30).is_good


def test_where_a_request_was_refused_nothing_is_stable_or_good(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch, [0.1] * 29, [0.1] * 29)
    assert (found.failed, found.in_time) == (1, 0.0)
    assert not found.is_stable
    assert not found.is_good


def made(monkeypatch: pytest.MonkeyPatch, ttft_s: list[float], tpot_s: list[float]) -> runs.Outcome:
    """The outcome of a replay that took these times, and refused as many as are missing."""

    def timed(*args: Any, **options: Any) -> ReplayResult:
        result = replay(*args, **options)
        report = msgspec.structs.replace(result.report, completed=len(ttft_s), failed=30 - len(ttft_s))
        return msgspec.structs.replace(result, report=report, ttft_s=ttft_s, tpot_s=tpot_s)

    monkeypatch.setattr(runs, "replay", timed)
    return carry_out(tiny())


def test_a_load_is_stable_below_ten_seconds_and_a_share_of_the_span() -> None:
    assert outcome(ttft=9.9, span_s=1000.0).is_stable
    assert not outcome(ttft=10.1, span_s=1000.0).is_stable
    assert outcome(ttft=3.9, span_s=100.0).is_stable
    assert not outcome(ttft=4.1, span_s=100.0).is_stable


def test_a_crew_carries_out_what_is_not_known(tmp_path: Path) -> None:
    told: list[str] = []
    with Crew(Notebook(tmp_path), 1, lambda found: told.append(found.key)) as crew:
        first = crew.run(tiny())
        assert crew.run(tiny()) == first
        with pytest.raises(SettingsError, match="policy 'nearest'"):
            crew.map(crew.run, [tiny(Setup("nearest", "nearest"))])
        with pytest.raises(crew_module.Stopped):
            crew.run(tiny(seed=1))
    assert told == [key_of(tiny())]
    assert Notebook(tmp_path).get(tiny()) == first


def test_a_crew_tries_out_what_may_be_far_beyond(tmp_path: Path) -> None:
    whole = tiny(workers=1, rate_scale=100.0, limit=400)
    beyond = msgspec.structs.replace(whole, asks="capacity")
    told: list[str] = []
    with Crew(Notebook(tmp_path), 1, lambda found: told.append(found.key)) as crew:
        assert crew.try_out(beyond) is None
        assert crew.try_out(beyond) is None
        assert not crew.run(whole).is_stable
        found = crew.try_out(tiny(rate_scale=0.1, asks="goodput"))
        assert found is not None
        assert found.is_good
    assert told == [key_of(beyond), key_of(whole), found.key]
    assert isinstance(Notebook(tmp_path).get(beyond), runs.Overload)


# --- the campaign ---


class LimitedCrew(Crew):
    """Knows without replaying: every policy keeps up to a rate of 4, and far beyond it a run that asks is given up."""

    def run(self, run: Run) -> runs.Outcome:
        ttft_s = 1.0 if run.rate_scale <= 4.0 else 20.0
        return outcome(run.setup.label, ttft=ttft_s, rate_scale=run.rate_scale, rate=10 * run.rate_scale)

    def try_out(self, run: Run) -> runs.Outcome | None:
        return self.run(run) if run.rate_scale <= 5.0 else None


def test_what_was_given_up_is_in_no_curve(tmp_path: Path) -> None:
    crew = LimitedCrew(Notebook(tmp_path), 1, lambda found: None)
    plan = Plan(workers=(4,), policies=("e2", "round-robin"), parts_on=0)
    (found,) = run_campaign(crew, [TINY], plan)
    for policy in ("e2", "round-robin"):
        assert 40 / 1.03 < found.capacity[policy] <= 40
        rates = [at.rate for at in found.curves[policy]]
        assert rates == sorted(rates)
        assert 40 < rates[-1] <= 50


# --- cases ---


def test_generated_cases_need_no_files_and_load() -> None:
    for case in cases(None):
        assert len(case.trace(seed=1, limit=5).requests) == 5


def test_the_cases_of_a_folder_are_its_known_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds none of"):
        cases(tmp_path)
    (tmp_path / "mooncake_synthetic.jsonl.zst").touch()
    recorded, *generated = cases(tmp_path)
    assert (recorded.name, recorded.profile, recorded.is_held_out) == ("synthetic", "llama-3-70b-4xh100", False)
    assert {case.name.startswith("unseen-"): case.is_held_out for case in generated} == {False: False, True: True}
    assert [case.name for case in cases(tmp_path, ["gen-mixed", "synthetic"])] == ["gen-mixed", "synthetic"]
    with pytest.raises(SettingsError, match="case 'toolbench' is unknown; known are synthetic, "):
        cases(tmp_path, ["toolbench"])
