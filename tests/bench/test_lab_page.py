"""The lab's page: its sentences and tables, of results made by hand."""

from __future__ import annotations

import msgspec
import pytest
from lab_outcomes import outcome, result

from prebled.bench.lab import tables
from prebled.bench.lab.campaign import CellResult, Plan, own_parts, paper_parts
from prebled.bench.lab.runs import Outcome

CAPACITY = {"e2": 15.0, "lmetric": 10.0, "round-robin": 5.0}


def at(ttft: float) -> dict[str, Outcome]:
    """`e2` with that TTFT, which the others have of 1 s and 2 s; best of all by E2E."""
    return {
        "e2": outcome(ttft=ttft),
        "lmetric": outcome("lmetric", ttft=1.0, e2e=4.0),
        "round-robin": outcome("round-robin", ttft=2.0),
    }


@pytest.fixture
def results() -> list[CellResult]:
    """Two seeds of a case tuned on, of which the first is worse for `e2`, and one held out."""
    parts = {setup.label: outcome(setup.label) for setup in (*paper_parts(), *own_parts())}
    factors = [{"round-robin": outcome(e2e=e2e), "e2": outcome()} for e2e in (6.0, 8.0)]
    held_out = {"e2": 20.0, "lmetric": 20.0, "round-robin": 20.0}
    return [
        result({0.5: at(1.6), 0.8: at(0.9)}, capacity=CAPACITY, at_round_robin=factors[0], parts=parts),
        result({0.5: at(0.9), 0.8: at(0.9)}, capacity=CAPACITY, at_round_robin=factors[1], seed=1),
        result({0.5: at(2.5), 0.8: at(1.0)}, capacity=held_out, case="unseen", is_held_out=True),
    ]


@pytest.fixture
def text(results: list[CellResult]) -> str:
    return tables.page(results, Plan(seeds=(0, 1)), "prebled bench lab", "a machine")


def test_the_page_says_how_it_came_about(text: str) -> None:
    assert "Made by `prebled bench lab` on a machine." in text
    assert "Cuts of 2000 requests; seeds 0, 1; 4, 8 workers;" in text
    assert "A comparison is one case, worker count, load and latency (mean or p99, TTFT or E2E)." in text
    assert "is the geometric mean over the seeds" in text


def test_in_short_there_are_shares_over_and_by_seed(text: str) -> None:
    assert "in 75.0% of 16 comparisons (tuned on: 75.0% of 8; held out: 75.0% of 8); " in text
    # The case held out has no seed 1.
    assert "; 75.0%, 100.0% for seeds 0, 1 alone; more than 10 % behind in 4 (tuned on: 2; held out: 2)." in text


def test_in_short_there_are_limits_over_one_rival_and_over_the_best_of_each_place(text: str) -> None:
    ours = "e2: 1.225x of lmetric's, the best rival over all cases and worker counts; 1.225x of whichever rival is best"
    assert f"- Capacity of {ours} in each (geometric means).\n" in text
    assert f"- Goodput of {ours} in each (geometric means).\n" in text
    assert "| made | 4 | 15 | 10 | 5 | 1.50 |\n| unseen | 4 | 20 | 20 | 20 | 1.00 |" in text
    assert "| made | 4 | 7.5 | 5 | 2.5 | 1.50 |\n| unseen | 4 | 10 | 10 | 10 | 1.00 |" in text
    assert text.count("\n| e2 over it |  |  | 1.22 | 1.73 | 1.22 |\n") == 2


def test_the_best_rival_of_each_place_is_more_than_any_one(results: list[CellResult]) -> None:
    other = {"e2": 15.0, "lmetric": 5.0, "round-robin": 10.0}
    text = tables.page([results[0], msgspec.structs.replace(results[2], capacity=other)], Plan(), "", "")
    assert "Capacity of e2: 2.121x of lmetric's" in text
    assert "; 1.500x of whichever rival is best in each" in text
    assert "| e2 over it |  |  | 2.12 | 2.12 | 1.50 |" in text


def test_a_goodput_of_ours_that_is_none_is_told(results: list[CellResult]) -> None:
    goodputs: list[dict[str, float]] = [
        {"e2": 6.0, "lmetric": 4.0, "round-robin": 0.0},
        {"e2": 0.0, "lmetric": 4.0, "round-robin": 0.0},
    ]
    bases = [results[0], results[2]]
    found = [msgspec.structs.replace(base, goodput=limits) for base, limits in zip(bases, goodputs, strict=True)]
    text = tables.page(found, Plan(), "", "")
    assert "Goodput of e2: 1.500x of lmetric's" in text
    assert "(geometric means); not in them 1 where a rival has some and e2 has none.\n" in text
    assert "| unseen | 4 | 0 | 4 | 0 |  |\n| e2 over it |  |  | 1.50 |  | 1.50 |" in text


def test_a_goodput_that_nobody_has_is_in_no_mean(results: list[CellResult]) -> None:
    nothing = dict.fromkeys(CAPACITY, 0.0)
    text = tables.page([msgspec.structs.replace(results[0], goodput=nothing)], Plan(), "", "")
    assert "Goodput of e2" not in text
    assert "| made | 4 | 0 | 0 | 0 |  |\n| e2 over it |  |  |  |  |  |" in text


def test_shares_are_shown_by_load_metric_and_seed(text: str) -> None:
    assert (
        "| comparisons | tuned on | held out |\n"
        "| --- | --- | --- |\n"
        "| all | 75.0% of 8 | 75.0% of 8 |\n"
        "| 50% load | 50.0% of 4 | 50.0% of 4 |\n"
        "| 80% load | 100.0% of 4 | 100.0% of 4 |\n"
        "| ttft mean | 50.0% of 2 | 50.0% of 2 |\n"
        "| ttft p99 | 50.0% of 2 | 50.0% of 2 |\n"
        "| e2e mean | 100.0% of 2 | 100.0% of 2 |\n"
        "| e2e p99 | 100.0% of 2 | 100.0% of 2 |\n"
        "| seed 0 alone | 75.0% of 8 | 75.0% of 8 |\n"
        "| seed 1 alone | 100.0% of 8 |  |\n"
    ) in text


def test_losses_have_their_spread_over_the_seeds(text: str) -> None:
    assert (
        "| case | workers | load | metric | best | e2 / best |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| unseen | 4 | 50% | ttft mean | lmetric | 2.50 |\n"
        "| unseen | 4 | 50% | ttft p99 | lmetric | 2.50 |\n"
        "| made | 4 | 50% | ttft mean | lmetric | 1.20 (0.90 to 1.60) |\n"
        "| made | 4 | 50% | ttft p99 | lmetric | 1.20 (0.90 to 1.60) |\n"
    ) in text


def test_more_losses_than_are_shown_are_counted() -> None:
    losing = {"e2": outcome(ttft=2.0, e2e=9.0), "lmetric": outcome("lmetric")}
    text = tables.page([result({0.5: losing}, case=f"case-{n}") for n in range(6)], Plan(), "", "")
    assert text.count(" | 50% | ttft mean | lmetric | 2.00 |") + text.count(" | 50% | ttft p99 | lmetric | 2.00 |") == 8
    assert text.count(" | lmetric | 4.50 |") == 12  # the worst, all of them
    assert "\n\n4 more.\n" in text


def test_round_robin_is_told_of_at_the_lowest_load(results: list[CellResult], text: str) -> None:
    slower = "At the lowest load, 50%, e2 is more than 2 % slower than round robin in"
    assert f"{slower} 2 of 8 comparisons; at worst 1.250x (ttft mean, unseen, 4 workers)." in text
    assert f"{slower} none of 4 comparisons; at worst 1.000x (e2e mean, made, 4 workers)." in tables.page(
        results[:2], Plan(), "", ""
    )


def test_the_other_tables_are_there(text: str) -> None:
    assert "| made | 4 | 3.50 (3.00 to 4.00) | 3.50 (3.00 to 4.00) |" in text
    # Over both seeds and both cases: e2 has 1.6, 0.9 and 2.5 s.
    assert "| 50% | ttft mean | 1.00 | 0.65 | 1.30 |" in text
    assert "| case | exploit only | + L | + M | + P | + rebalance |" in text


def test_a_page_without_losses_says_so() -> None:
    text = tables.page([result({0.5: {"e2": outcome(), "lmetric": outcome(ttft=1.05)}})], Plan(), "", "")
    assert "## Where e2 is more than 10 % behind the best\n\nNowhere." in text
    assert "round robin in" not in text


def test_one_seed_on_cases_that_were_tuned_on_needs_no_splitting() -> None:
    text = tables.page([result({0.5: {"e2": outcome(ttft=1.5), "lmetric": outcome()}})], Plan(), "", "")
    assert "in 50.0% of 4 comparisons; more than 10 % behind in 2.\n" in text
    assert "| comparisons | tuned on |\n" in text
    assert "held out" not in text
    assert "| seed 0 alone" not in text
    assert "| made | 4 | 50% | ttft mean | lmetric | 1.50 |" in text
