"""The findings of a campaign as one page of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from prebled.bench.lab import findings
from prebled.bench.lab.campaign import OURS, CellResult, Plan, own_parts, paper_parts

SHOWN_LOSSES = 20


def page(results: Sequence[CellResult], plan: Plan, command: str, machine: str) -> str:
    """The whole page. `command` and `machine`: what made it, and on what."""
    cut = "whole traces" if plan.limit is None else f"cuts of {plan.limit} requests"
    parts = [
        "# The policy lab",
        f"Made by `{command}` on {machine}. Virtual time: workers follow the step-time regressions of their profile, so"
        f" figures compare policies and do not predict a GPU. {cut.capitalize()}; seeds {_joined(plan.seeds)};"
        f" {_joined(plan.workers)} workers; blocks of 64 tokens; cache reports 50 ms late; local priority groups on"
        " every worker. Capacity: the highest rate with a mean TTFT under 10 s and under 4 % of the span of arrivals,"
        " found to 3 %. Loads are shares of the best policy's capacity.",
        "## In short\n\n" + _short(results),
        "## Capacity, requests/s\n\n" + _limits(results, "capacity"),
        "## Goodput, requests/s\n\nThe highest rate at which 99 % of the requests have a TTFT of at most 5 s and at"
        " most 200 ms per further token; 0: not even at a twentieth of the policy's capacity. A goodput"
        " above the capacity is that of a cut too short for a queue of 5 s, not of a lasting load.\n\n"
        + _limits(results, "goodput"),
        "## Round robin over e2\n\nAt 95 % of round robin's own capacity; of several seeds the median, and the"
        " range.\n\n" + _factors(results),
        "## Every policy over e2\n\nGeometric means over cases and seeds; above 1: slower than e2.\n\n"
        + _grid(results),
        "## Where e2 is more than 10 % behind the best\n\n" + _losses(results),
        "## The parts, one by one\n\nMean E2E at 80 % of the best capacity, seconds. First the paper's E2, each part"
        " added to those before it: where to exploit, and ties everywhere; the terms of its cost, L (load within the"
        " window), M (what would be evicted) and P (prefill); its adjustments; and the local priority groups, fcfs"
        " until then. Then `e2` with one thing taken out: its price on recomputing what another worker holds, the part"
        " of that price that grows with the backlog, the discount for prefixes that many in flight share, the cost to"
        " those that decode, and the local priority groups.\n\n" + _parts(results),
    ]
    return "\n\n".join(parts) + "\n"


def _short(results: Sequence[CellResult]) -> str:
    found = findings.standings(results)
    tuned = [standing for standing in found if not standing.is_held_out]
    held_out = [standing for standing in found if standing.is_held_out]
    split = f" (tuned on: {_share_best(tuned)}; held out: {_share_best(held_out)})" if tuned and held_out else ""
    lines = [
        f"- Capacity of e2 over the best rival: {_gain(results, 'capacity'):.3f}x (geometric mean).",
        f"- e2 is best, or within 2 % of the best, in {_share_best(found, ' comparisons')}{split};"
        f" more than 10 % behind in {sum(standing.ratio > findings.WORST for standing in found)}."
        " A comparison: one case, worker count, seed, load and latency (mean or p99, TTFT or E2E).",
    ]
    low = findings.against_round_robin(results)
    if low:
        result, metric, ratio = max(low, key=lambda entry: entry[2])
        lines.append(
            f"- At the lowest load e2 over round robin is at most {ratio:.3f}x ({metric}, {result.cell.case.name}, "
            f"{result.cell.workers} workers)."
        )
    slowest_us, outcome = findings.slowest_decision_us(results)
    lines.append(f"- The slowest p99 of a decision: {slowest_us:.0f} us ({outcome.case}, {outcome.workers} workers).")
    replays = {o.key: o for result in results for outcomes in result.grid.values() for o in outcomes.values()}
    rates = sorted(outcome.requests / outcome.wall_s for outcome in replays.values() if outcome.wall_s)
    lines.append(f"- Replayed requests per second of wall time, by run: {rates[0]:.0f} to {rates[-1]:.0f}.")
    return "\n".join(lines)


def _share_best(found: Sequence[findings.Standing], of_what: str = "") -> str:
    return f"{findings.share_best(found):.1%} of {len(found)}{of_what}"


def _gain(results: Sequence[CellResult], name: str) -> float:
    bases = findings.bases(results)
    return findings.geometric_mean(findings.over_best_rival(getattr(result, name)) for result in bases)


def _limits(results: Sequence[CellResult], name: str) -> str:
    bases = findings.bases(results)
    policies = list(bases[0].capacity)
    rows = []
    for result in bases:
        limits: dict[str, float] = getattr(result, name)
        cells = [f"{float(f'{limits[policy]:.3g}'):g}" for policy in policies]  # 1460, not 1.46e+03
        rows.append([*_place(result), *cells, _times(findings.over_best_rival(limits))])
    rows.append(["geometric mean", "", *("" for _ in policies), f"{_gain(results, name):.2f}"])
    return table(["case", "workers", *policies, "e2 / best rival"], rows)


def _times(factor: float) -> str:
    """Nothing where there is none to compare with."""
    return f"{factor:.2f}" if 0 < factor < float("inf") else ""


def _factors(results: Sequence[CellResult]) -> str:
    rows = [[factor.case, factor.workers, *_spreads(factor)] for factor in findings.factors(results)]
    return table(["case", "workers", "mean E2E", "p99 E2E"], rows)


def _spreads(factor: findings.Factor) -> list[str]:
    return [_spread(factor.e2e_mean), _spread(factor.e2e_p99)]


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _grid(results: Sequence[CellResult]) -> str:
    policies = list(results[0].grid[min(results[0].grid)])
    rows = []
    for load in results[0].grid:
        for metric in findings.METRICS:
            means = [
                findings.geometric_mean(
                    getattr(result.grid[load][policy], metric) / getattr(result.grid[load][OURS], metric)
                    for result in results
                    if getattr(result.grid[load][OURS], metric)
                )
                for policy in policies
            ]
            rows.append([f"{load:.0%}", metric.replace("_", " "), *(f"{mean:.2f}" for mean in means)])
    return table(["load", "metric", *policies], rows)


def _losses(results: Sequence[CellResult]) -> str:
    lost = [standing for standing in findings.standings(results) if standing.ratio > findings.WORST]
    lost.sort(key=lambda standing: -standing.ratio)
    if not lost:
        return "Nowhere."
    rows = [
        [s.case, s.workers, s.seed, f"{s.load:.0%}", s.metric.replace("_", " "), s.best, f"{s.ratio:.2f}"]
        for s in lost[:SHOWN_LOSSES]
    ]
    more = f"\n\n{len(lost) - SHOWN_LOSSES} more." if len(lost) > SHOWN_LOSSES else ""
    return table(["case", "workers", "seed", "load", "metric", "best", "e2 / best"], rows) + more


def _parts(results: Sequence[CellResult]) -> str:
    measured = [result for result in results if result.parts]
    tables = []
    for setups in (paper_parts(), own_parts()):
        labels = [setup.label for setup in setups]
        rows = [
            [result.cell.case.name, *(f"{result.parts[label].e2e_mean:.3g}" for label in labels)] for result in measured
        ]
        tables.append(table(["case", *labels], rows))
    return "\n\n".join(tables)


def _place(result: CellResult) -> list[object]:
    return [result.cell.case.name, result.cell.workers]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
