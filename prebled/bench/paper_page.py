"""The comparison with Preble's published figures as one page of Markdown: what differs, by how much, and why.

Every number in the text is computed from the outcomes that the tables show.
"""

from __future__ import annotations

from collections.abc import Sequence

from prebled.bench.lab.findings import geometric_mean
from prebled.bench.lab.runs import Outcome
from prebled.bench.lab.tables import table
from prebled.bench.paper import Comparison, Trial
from prebled.bench.paper_setups import PATTERNS, RUN_S, Latency

MANY_HITS = 0.1
"""Prompt tokens that are lost to evictions, as a share of all, from which on the page names the set-up."""


def page(comparisons: Sequence[Comparison], seed: int, machine: str) -> str:
    """The whole page. `machine`: what the replays ran on."""
    matched = [(one, one.matched) for one in comparisons if one.matched is not None]
    return (
        "\n\n".join(
            [
                "# The set-ups of the Preble paper",
                f"Made by `prebled bench paper --seed {seed}` on {machine}. Published: mean and p99 of end-to-end"
                " latency, read off the curves of the authors' blog post on Preble, of SGLang behind round robin (RR)"
                " and of Preble. Ours: generated workloads with the statistics of the paper's Table 1,"
                f" {RUN_S} s of Poisson arrivals (ToolBench: {PATTERNS} tool lists a worker, as in the released"
                " configurations), replayed in virtual time on workers that follow the released step-time regressions."
                " Seconds; factors are round robin's latency over the policy's.",
                "## At the published rates\n\n" + _as_published(comparisons),
                "## With caches that never evict\n\nAt the published rates again.\n\n" + _roomy(comparisons),
                "## At equal latency of round robin\n\nThe rate at which our round robin has the published mean (found"
                " to 3 %), as a multiple of the published rate, and what the policies make of it there.\n\n"
                + _matched(matched),
                "## Why they differ\n\n" + _why(comparisons, matched),
            ]
        )
        + "\n"
    )


def _as_published(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for one in comparisons:
        setup, trial = one.setup, one.as_published
        rows.append(
            [
                *(setup.machines.name, setup.workload, f"{setup.rate:g}"),
                *(_published(setup.round_robin), _published(setup.preble)),
                *(_both(trial.round_robin), _both(trial.e2_paper), _both(trial.e2)),
                *(f"{_published_factor(one):.2f}", f"{_paper_factor(trial):.2f}", f"{_factor(trial):.2f}"),
            ]
        )
    header = [
        *("GPUs, model", "workload", "requests/s", "published RR", "published Preble"),
        *("our RR", "e2-paper", "e2", "published factor", "e2-paper", "e2"),
    ]
    return "Latencies: mean / p99. Factors: of means.\n\n" + table(header, rows)


def _roomy(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for one in comparisons:
        setup, usual, trial = one.setup, one.as_published, one.roomy
        rows.append(
            [
                *(setup.machines.name, setup.workload, f"{setup.rate:g}", _published(setup.preble)),
                *(_both(trial.round_robin), _both(trial.e2_paper), _both(trial.e2)),
                *(f"{_published_factor(one):.2f}", f"{_paper_factor(trial):.2f}", f"{_factor(trial):.2f}"),
                f"{usual.e2_paper.hit_ratio:.2f} of {trial.e2_paper.hit_ratio:.2f}",
            ]
        )
    header = [
        *("GPUs, model", "workload", "requests/s", "published Preble", "our RR", "e2-paper", "e2"),
        *("published factor", "e2-paper", "e2", "hit ratio of e2-paper: usual caches, of these"),
    ]
    return table(header, rows)


def _matched(matched: Sequence[tuple[Comparison, Trial]]) -> str:
    rows = []
    for one, trial in matched:
        setup = one.setup
        rows.append(
            [
                *(setup.machines.name, setup.workload, f"{trial.rate / setup.rate:.2f}"),
                *(_published(setup.round_robin), _both(trial.round_robin)),
                *(f"{_published_factor(one):.2f}", f"{_paper_factor(trial):.2f}", f"{_factor(trial):.2f}"),
                f"{setup.round_robin.p99 / setup.preble.p99:.2f}",
                f"{trial.round_robin.e2e_p99 / trial.e2_paper.e2e_p99:.2f}",
                f"{trial.round_robin.e2e_p99 / trial.e2.e2e_p99:.2f}",
            ]
        )
    header = [
        *("GPUs, model", "workload", "rate / published", "published RR", "our RR"),
        *("mean: published", "e2-paper", "e2", "p99: published", "e2-paper", "e2"),
    ]
    return table(header, rows)


def _why(comparisons: Sequence[Comparison], matched: Sequence[tuple[Comparison, Trial]]) -> str:
    shares = [one.as_published.round_robin.e2e_mean / one.setup.round_robin.mean for one in comparisons]
    served = sum(one.as_published.round_robin.ttft_mean < 1 for one in comparisons)
    lines = [
        f"- **The engine is not as loaded.** At the published rates our round robin has {_range(shares)} times the"
        f" published mean latency (geometric mean {geometric_mean(shares):.2f}); in {served} of {len(comparisons)}"
        " set-ups its mean TTFT is below 1 s, hardly a queue, and without queues there is less for any policy to win:"
        f" {_factors([(one, one.as_published) for one in comparisons])}",
        "- **How much faster the rate must be** before our round robin is as slow as the published one:"
        f" {_rates(matched)}. Replayed workers spend their time in steps alone, as the released regressions have it;"
        " tokenising, HTTP and the CPU work of engine and scheduler take none. The published figures do not tell how"
        " much of the difference that is.",
        f"- **At equal latency of round robin**: {_factors(matched)}",
        *_extremes(matched),
        f"- **Caches.** {_evictions(comparisons)}",
        "- **Not the same prompts.** The generators have the means and deviations of the paper's Table 1, not its"
        " prompts. But for ToolBench it is not known here how many requests a published run had, over how many"
        " documents, videos or problems, nor in which order. The length of a run decides latencies beyond capacity:"
        " the queue grows until arrivals end.",
        "- **8 H100** were two tensor-parallel groups of four; the released regression is of groups of two, and our two"
        " workers take 0.55 of its times, which is an assumption.",
        "- **Queues.** The published round robin is over SGLang with its queue, longest prefix first; ours has the"
        " paper's local priority groups on every worker, under every policy: what they gain is in the published factors"
        " of Preble and not in ours.",
    ]
    return "\n".join(lines)


def _rates(matched: Sequence[tuple[Comparison, Trial]]) -> str:
    """By workload and in all, as multiples of the published rates."""
    multiples: dict[str, list[float]] = {}
    for one, trial in matched:
        multiples.setdefault(one.setup.workload, []).append(trial.rate / one.setup.rate)
    overall = geometric_mean(multiple for values in multiples.values() for multiple in values)
    return ", ".join(f"{name} {_range(values)}" for name, values in multiples.items()) + (
        f"; geometric mean {overall:.2f}"
    )


def _factors(trials: Sequence[tuple[Comparison, Trial]]) -> str:
    named = {
        "published": [_published_factor(one) for one, _ in trials],
        "e2-paper": [_paper_factor(trial) for _, trial in trials],
        "e2": [_factor(trial) for _, trial in trials],
    }
    spreads = (f"{name} {geometric_mean(values):.2f} ({_range(values)})" for name, values in named.items())
    return f"factors of mean latency, geometric mean and range: {'; '.join(spreads)}."


def _evictions(comparisons: Sequence[Comparison]) -> str:
    """Where the size of the caches decides, and what it does there."""
    lost = [one for one in comparisons if _lost_hits(one) > MANY_HITS]
    text = (
        "The generators spread the requests of a group over the whole run, so that a cache must hold many groups"
        f" at once. In {len(lost)} of {len(comparisons)} set-ups that takes more than {MANY_HITS:g} of e2-paper's hit"
        " ratio"
    )
    if not lost:
        return f"{text}."
    before = geometric_mean(one.as_published.e2_paper.e2e_mean / one.setup.preble.mean for one in lost)
    after = geometric_mean(one.roomy.e2_paper.e2e_mean / one.setup.preble.mean for one in lost)
    return (
        f"{text}: {_places(lost)}. There its mean latency is {before:.2f} times the published one of Preble, and"
        f" {after:.2f} times with caches that never evict (geometric means)."
    )


def _lost_hits(one: Comparison) -> float:
    return one.roomy.e2_paper.hit_ratio - one.as_published.e2_paper.hit_ratio


def _extremes(matched: Sequence[tuple[Comparison, Trial]]) -> list[str]:
    """Where the paper's policy does much more or less for us than was published."""
    less = [one for one, trial in matched if _paper_factor(trial) < _published_factor(one) / 1.5]
    more = [one for one, trial in matched if _paper_factor(trial) > _published_factor(one) * 1.5]
    lines = []
    if less:
        lines.append(f"- There e2-paper gains less than 1/1.5 of what was published in: {_places(less)}.")
    if more:
        lines.append(f"- There e2-paper gains more than 1.5 times what was published in: {_places(more)}.")
    return lines


def _places(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(
        f"{one.setup.workload} at {one.setup.rate:g}/s on {one.setup.machines.name}" for one in comparisons
    )


def _published_factor(one: Comparison) -> float:
    return one.setup.round_robin.mean / one.setup.preble.mean


def _paper_factor(trial: Trial) -> float:
    return trial.round_robin.e2e_mean / trial.e2_paper.e2e_mean


def _factor(trial: Trial) -> float:
    return trial.round_robin.e2e_mean / trial.e2.e2e_mean


def _published(latency: Latency) -> str:
    return f"{latency.mean:g} / {latency.p99:g}"


def _both(outcome: Outcome) -> str:
    return f"{outcome.e2e_mean:.3g} / {outcome.e2e_p99:.3g}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "none"
