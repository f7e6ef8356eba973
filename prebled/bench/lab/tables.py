"""The findings of a campaign as one page of Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from prebled.bench.lab import findings
from prebled.bench.lab.campaign import OURS, ROUND_ROBIN, CellResult, Plan, own_parts, paper_parts
from prebled.bench.lab.findings import Standing

SHOWN_LOSSES = 20

_LIMITS = (
    "Searched for under the first seed. The last row: e2 over the rival of that column, and in the last column over the"
    " best rival of each row, whichever that is; geometric means over the rows in which neither of the two is 0."
)

_GOODPUT = (
    "The highest rate at which 99 % of the requests have a TTFT of at most 5 s and at most 200 ms per further token; 0:"
    " not even at a twentieth of the policy's capacity. A goodput above the capacity is that of a cut too short for a"
    " queue of 5 s, not of a lasting load. The last row as above."
)

_LOSSES = (
    "Ratios of the geometric means over the seeds; in brackets the lowest and the highest ratio to the same policy in a"
    " seed alone."
)

_PARTS = (
    "Mean E2E at 80 % of the best capacity, seconds. First the paper's E2, each part added to those before it: where to"
    " exploit, and ties everywhere; the terms of its cost, L (load within the window), M (what would be evicted) and P"
    " (prefill); its adjustments; and the local priority groups, fcfs until then. Then `e2` with one thing taken out:"
    " its price on recomputing what another worker holds, the part of that price that grows with the backlog, the"
    " discount for prefixes that many in flight share, the cost to those in flight, what these mean for its own"
    " output, that a request overtakes those with less in the cache, and the local priority groups."
)


def page(results: Sequence[CellResult], plan: Plan, command: str, machine: str) -> str:
    """The whole page. `command` and `machine`: what made it, and on what."""
    found = findings.standings(results)
    sections = {
        "In short": _short(results, found),
        "Where e2 is best": "Shares of the comparisons in which e2 is the best policy or within 2 % of it; a seed alone"
        " is judged on its own figures.\n\n" + _shares(found),
        "Capacity, requests/s": _LIMITS + "\n\n" + _limits(results, "capacity"),
        "Goodput, requests/s": _GOODPUT + "\n\n" + _limits(results, "goodput"),
        "Round robin over e2": "At 95 % of round robin's own capacity; of several seeds the median, and the range.\n\n"
        + _factors(results),
        "Every policy over e2": "Geometric means over cases, worker counts and seeds; above 1: slower than e2.\n\n"
        + _grid(results),
        "Where e2 is more than 10 % behind the best": _losses(found),
        "The parts, one by one": _PARTS + "\n\n" + _parts(results),
    }
    parts = [
        "# The policy lab",
        _made(plan, command, machine),
        *(f"## {name}\n\n{text}" for name, text in sections.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _made(plan: Plan, command: str, machine: str) -> str:
    """How the figures came about, and what is compared with what."""
    cut = "whole traces" if plan.limit is None else f"cuts of {plan.limit} requests"
    return (
        f"Made by `{command}` on {machine}. Virtual time: workers follow the step-time regressions of their profile, so"
        f" figures compare policies and do not predict a GPU. {cut.capitalize()}; seeds {_joined(plan.seeds)};"
        f" {_joined(plan.workers)} workers; blocks of 64 tokens; cache reports 50 ms late; local priority groups on"
        " every worker. Capacity: the highest rate with a mean TTFT under 10 s and under 4 % of the span of arrivals,"
        " found to 3 %. Loads are shares of the best policy's capacity.\n\n"
        "A comparison is one case, worker count, load and latency (mean or p99, TTFT or E2E). A policy's figure in it"
        " is the geometric mean over the seeds, and the best policy is the one with the lowest figure."
    )


def _short(results: Sequence[CellResult], found: Sequence[Standing]) -> str:
    lines = [
        _gain(results, "capacity"),
        _gain(results, "goodput"),
        f"e2 is best, or within 2 % of the best, in {_share(found)} comparisons{_split(found, _share)}"
        f"{_by_seed(found)}; more than 10 % behind in {_count_lost(found)}{_split(found, _count_lost)}.",
        _at_low_load(found),
        *_speed(results),
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def _gain(results: Sequence[CellResult], name: str) -> str:
    """In a sentence; nothing where no rival has such a limit together with e2."""
    places = _places(results, name)
    over = findings.over_rivals(places)
    if not over:
        return ""
    rival = min(over, key=over.__getitem__)
    words = (
        f"{name.capitalize()} of e2: {over[rival]:.3f}x of {rival}'s, the best rival over all cases and worker counts;"
        f" {findings.over_best_rivals(places):.3f}x of whichever rival is best in each (geometric means)"
    )
    missing = findings.without_limit(places)
    return f"{words}; not in them {missing} where a rival has some and e2 has none." if missing else f"{words}."


def _places(results: Sequence[CellResult], name: str) -> list[dict[str, float]]:
    return [getattr(result, name) for result in findings.bases(results)]


def _share(found: Sequence[Standing]) -> str:
    return f"{findings.share_best(found):.1%} of {len(found)}"


def _count_lost(found: Sequence[Standing]) -> str:
    return str(len(findings.losses(found)))


def _groups(found: Sequence[Standing]) -> dict[str, list[Standing]]:
    """Apart: what constants were chosen on, and what not; without a group that is empty."""
    groups = {
        "tuned on": [standing for standing in found if not standing.is_held_out],
        "held out": [standing for standing in found if standing.is_held_out],
    }
    return {name: group for name, group in groups.items() if group}


def _split(found: Sequence[Standing], say: Callable[[Sequence[Standing]], str]) -> str:
    """The same of both groups, if there are both."""
    groups = _groups(found)
    return f" ({'; '.join(f'{name}: {say(group)}' for name, group in groups.items())})" if len(groups) > 1 else ""


def _by_seed(found: Sequence[Standing]) -> str:
    """The share of each seed alone, if there are several."""
    seeds = findings.alone(found)
    shares = _joined(f"{findings.share_best(group):.1%}" for group in seeds.values())
    return f"; {shares} for seeds {_joined(seeds)} alone" if len(seeds) > 1 else ""


def _at_low_load(found: Sequence[Standing]) -> str:
    """In a sentence; nothing without round robin."""
    low = findings.against_round_robin(found)
    if not low:
        return ""
    worst = low[0]
    slower = sum(standing.over(ROUND_ROBIN) > findings.LEVEL for standing in low)
    return (
        f"At the lowest load, {worst.load:.0%}, e2 is more than 2 % slower than round robin in {slower or 'none'} of"
        f" {len(low)} comparisons; at worst {worst.over(ROUND_ROBIN):.3f}x ({_words(worst.metric)}, {worst.case},"
        f" {worst.workers} workers)."
    )


def _speed(results: Sequence[CellResult]) -> list[str]:
    """Of decisions and of replays, in sentences."""
    slowest_us, outcome = findings.slowest_decision_us(results)
    replays = {o.key: o for result in results for outcomes in result.grid.values() for o in outcomes.values()}
    rates = sorted(outcome.requests / outcome.wall_s for outcome in replays.values() if outcome.wall_s)
    return [
        f"The slowest p99 of a decision: {slowest_us:.0f} us ({outcome.case}, {outcome.workers} workers).",
        f"Replayed requests per second of wall time, by run: {rates[0]:.0f} to {rates[-1]:.0f}.",
    ]


def _shares(found: Sequence[Standing]) -> str:
    """By load, by metric and by seed, for what was tuned on and what was held out."""
    rows = {"all": list(found)}
    for load in dict.fromkeys(standing.load for standing in found):
        rows[f"{load:.0%} load"] = [standing for standing in found if standing.load == load]
    for metric in findings.METRICS:
        rows[_words(metric)] = [standing for standing in found if standing.metric == metric]
    seeds = findings.alone(found)
    if len(seeds) > 1:
        rows |= {f"seed {seed} alone": group for seed, group in seeds.items()}
    names = list(_groups(found))
    split = {row: _groups(group) for row, group in rows.items()}
    return table(
        ["comparisons", *names],
        [[row, *(_share(groups[name]) if name in groups else "" for name in names)] for row, groups in split.items()],
    )


def _limits(results: Sequence[CellResult], name: str) -> str:
    bases = findings.bases(results)
    policies = list(bases[0].capacity)
    rows = []
    for result in bases:
        limits: dict[str, float] = getattr(result, name)
        cells = [f"{float(f'{limits[policy]:.3g}'):g}" for policy in policies]  # 1460, not 1.46e+03
        rows.append([*_place(result), *cells, _times(findings.over_best_rival(limits))])
    places = _places(results, name)
    over = findings.over_rivals(places)
    means = [_times(over.get(policy, 0.0)) for policy in policies]
    rows.append(["e2 over it", "", *means, _times(findings.over_best_rivals(places)) if over else ""])
    return table(["case", "workers", *policies, "e2 / best rival"], rows)


def _times(factor: float) -> str:
    """Nothing where there is none to compare with."""
    return f"{factor:.2f}" if 0 < factor < float("inf") else ""


def _factors(results: Sequence[CellResult]) -> str:
    rows = [[factor.case, factor.workers, *_spreads(factor)] for factor in findings.factors(results)]
    return table(["case", "workers", "mean E2E", "p99 E2E"], rows)


def _spreads(factor: findings.Factor) -> list[str]:
    return [_spread(median(ratios), ratios) for ratios in (factor.e2e_mean, factor.e2e_p99)]


def _spread(middle: float, values: Sequence[float]) -> str:
    """With the range, if there are several."""
    return f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else f"{middle:.2f}"


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
            rows.append([f"{load:.0%}", _words(metric), *(f"{mean:.2f}" for mean in means)])
    return table(["load", "metric", *policies], rows)


def _losses(found: Sequence[Standing]) -> str:
    lost = findings.losses(found)
    if not lost:
        return "Nowhere."
    rows = [[s.case, s.workers, f"{s.load:.0%}", _words(s.metric), s.best, _ratio(s)] for s in lost[:SHOWN_LOSSES]]
    shown = table(["case", "workers", "load", "metric", "best", "e2 / best"], rows)
    more = f"\n\n{len(lost) - SHOWN_LOSSES} more." if len(lost) > SHOWN_LOSSES else ""
    return f"{_LOSSES}\n\n{shown}{more}"


def _ratio(lost: Standing) -> str:
    """To the best, which is the rival: `e2` is not the best here."""
    return _spread(lost.ratio, lost.spread if len(lost.by_seed) > 1 else ())


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


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
