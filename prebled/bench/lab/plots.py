"""The findings of a campaign as pictures: latency against rate for every case, goodput, and the parts of E2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prebled.bench.lab import findings
from prebled.bench.lab.campaign import OURS, CellResult, paper_parts
from prebled.errors import SettingsError

_COLOURS = {
    "e2": "#d62728",
    "e2-paper": "#ff9896",
    "round-robin": "#7f7f7f",
    "least-loaded": "#bcbd22",
    "cache-aware": "#1f77b4",
    "dynamo": "#2ca02c",
    "lmetric": "#9467bd",
    "dualmap": "#8c564b",
}


def draw(results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write all pictures; their paths. Raises SettingsError without matplotlib."""
    pyplot = _pyplot()
    bases = findings.bases(results)
    names = dict.fromkeys(result.cell.case.name for result in bases)
    paths = [_latency(pyplot, [r for r in bases if r.cell.case.name == name], folder) for name in names]
    paths.append(_goodput(pyplot, bases, folder))
    if any(result.parts for result in results):
        paths.append(_parts(pyplot, [result for result in results if result.parts], folder))
    return paths


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SettingsError("plots need matplotlib (pip install 'prebled[bench]')") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _latency(pyplot: Any, cells: Sequence[CellResult], folder: Path) -> Path:
    """Mean E2E and p99 TTFT against the rate, one row of panels for each worker count."""
    name = cells[0].cell.case.name
    figure, axes = pyplot.subplots(len(cells), 2, figsize=(12, 4.2 * len(cells)), squeeze=False)
    for row, result in zip(axes, cells, strict=True):
        for axis, (metric, title) in zip(row, (("e2e_mean", "mean E2E"), ("ttft_p99", "p99 TTFT")), strict=True):
            for policy, tried in result.curves.items():
                points = {outcome.rate: getattr(outcome, metric) for outcome in tried}
                points |= {o[policy].rate: getattr(o[policy], metric) for o in result.grid.values()}
                rates = sorted(points)
                width, order = (2.4, 3) if policy == OURS else (1.2, 2)
                axis.plot(
                    rates,
                    [points[rate] for rate in rates],
                    marker="o",
                    markersize=3,
                    color=_COLOURS.get(policy),
                    linewidth=width,
                    zorder=order,
                    label=policy,
                )
            best = max(result.capacity.values())
            axis.axvline(best, color="black", linewidth=0.6, linestyle=":")
            axis.set(yscale="log", xlabel="requests/s", ylabel="seconds", xlim=(0, 1.3 * best))
            axis.set_title(f"{name}, {result.cell.workers} workers: {title}")
            axis.grid(visible=True, which="both", alpha=0.25)
    axes[0][0].legend(fontsize=8)
    return _save(pyplot, figure, folder / f"{name}.png")


def _goodput(pyplot: Any, bases: Sequence[CellResult], folder: Path) -> Path:
    """Goodput of every policy as a share of the best one's."""
    policies = list(bases[0].goodput)
    figure, axis = pyplot.subplots(figsize=(max(12, 0.9 * len(bases)), 5))
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        shares = [result.goodput[policy] / (max(result.goodput.values()) or 1) for result in bases]
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(bases))]
        axis.bar(places, shares, width, color=_COLOURS.get(policy), label=policy)
    axis.set_xticks(
        range(len(bases)), [f"{r.cell.case.name}\n{r.cell.workers}" for r in bases], fontsize=7, rotation=45
    )
    axis.set(ylabel="goodput, share of the best", ylim=(0, 1.18))
    axis.set_title("Goodput: highest rate with 99 % of requests at TTFT ≤ 5 s and ≤ 200 ms per further token")
    axis.legend(ncols=len(policies), fontsize=8, loc="upper center")
    axis.grid(visible=True, axis="y", alpha=0.25)
    return _save(pyplot, figure, folder / "goodput.png")


def _parts(pyplot: Any, measured: Sequence[CellResult], folder: Path) -> Path:
    """The paper's E2, part by part: mean E2E over that of `e2`."""
    labels = [setup.label for setup in paper_parts()]
    figure, axis = pyplot.subplots(figsize=(11, 5))
    for result in measured:
        ours = result.parts[OURS].e2e_mean or 1.0
        axis.plot(labels, [result.parts[label].e2e_mean / ours for label in labels], marker="o", label=_name(result))
    axis.axhline(1.0, color=_COLOURS[OURS], linewidth=1.5)
    axis.set(yscale="log", ylabel="mean E2E over that of e2")
    axis.set_title(f"The paper's E2, each part added to those before it; {measured[0].cell.workers} workers, 80 % load")
    axis.legend(fontsize=8, ncols=2)
    axis.grid(visible=True, which="both", alpha=0.25)
    return _save(pyplot, figure, folder / "parts.png")


def _name(result: CellResult) -> str:
    return result.cell.case.name


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
