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

SHOWN = 1.3
"""Rates beyond so many times the best capacity are left out."""


def draw(results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write all pictures; their paths. Raises SettingsError without matplotlib."""
    pyplot = load_pyplot()
    bases = findings.bases(results)
    names = dict.fromkeys(result.cell.case.name for result in bases)
    paths = [_latency(pyplot, [r for r in bases if r.cell.case.name == name], folder) for name in names]
    paths.append(_goodput(pyplot, bases, folder))
    if any(result.parts for result in results):
        paths.append(_parts(pyplot, [result for result in results if result.parts], folder))
    return paths


def load_pyplot() -> Any:
    """For files, not screens. Raises SettingsError without matplotlib."""
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
    figure, axes = pyplot.subplots(
        len(cells), 2, figsize=(12, 4 * len(cells) + 0.8), squeeze=False, layout="constrained"
    )
    for row, result in zip(axes, cells, strict=True):
        for axis, (metric, title) in zip(row, (("e2e_mean", "mean E2E"), ("ttft_p99", "p99 TTFT")), strict=True):
            _curves(axis, result, metric)
            axis.set(xlabel="requests/s", ylabel=f"{title}, s")
            axis.set_title(f"{name}, {result.cell.workers} workers: {title}")
    _legend(figure, axes[0][0])
    return _save(pyplot, figure, folder / f"{name}.png")


def _curves(axis: Any, result: CellResult, metric: str) -> None:
    """One for each policy, up to somewhat beyond the best one's capacity."""
    best = max(result.capacity.values())
    for policy, tried in result.curves.items():
        outcomes = [*tried, *(at[policy] for at in result.grid.values())]
        points = {outcome.rate: getattr(outcome, metric) for outcome in outcomes if outcome.rate <= SHOWN * best}
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
    axis.axvline(best, color="black", linewidth=0.8, linestyle=":", label="capacity of the best")
    axis.set_xlim(0, SHOWN * best)
    _log_scale(axis)


def _log_scale(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(visible=True, which="both", alpha=0.25)


def _goodput(pyplot: Any, bases: Sequence[CellResult], folder: Path) -> Path:
    """Goodput of every policy as a share of the best one's; nothing where no policy has any."""
    policies = list(bases[0].goodput)
    figure, axis = pyplot.subplots(figsize=(max(12, 0.9 * len(bases)), 5.5), layout="constrained")
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        shares = [result.goodput[policy] / (max(result.goodput.values()) or 1) for result in bases]
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(bases))]
        axis.bar(places, shares, width, color=_COLOURS.get(policy), label=policy, zorder=2)
    for place, result in enumerate(bases):
        best = max(result.goodput.values())
        axis.text(place, 1.02, f"{best:.3g}/s" if best else "none", ha="center", fontsize=8)
    labels = [f"{result.cell.case.name}\n{result.cell.workers} workers" for result in bases]
    turned = {"rotation": 45, "ha": "right"} if len(bases) > 8 else {}
    axis.set_xticks(range(len(bases)), labels, fontsize=8, **turned)
    axis.set(ylabel="goodput, share of the best", ylim=(0, 1.1), xlim=(-0.6, len(bases) - 0.4))
    axis.set_title("Goodput: highest rate with 99 % of requests at TTFT ≤ 5 s and ≤ 200 ms per further token")
    axis.grid(visible=True, axis="y", alpha=0.25)
    _legend(figure, axis)
    return _save(pyplot, figure, folder / "goodput.png")


def _parts(pyplot: Any, measured: Sequence[CellResult], folder: Path) -> Path:
    """The paper's E2, part by part: mean E2E over that of `e2`."""
    labels = [setup.label for setup in paper_parts()]
    figure, axis = pyplot.subplots(figsize=(12, 5.5), layout="constrained")
    highest = 0.0
    for number, result in enumerate(measured):
        ours = result.parts[OURS].e2e_mean or 1.0
        ratios = [result.parts[label].e2e_mean / ours for label in labels]
        highest = max(highest, *ratios)
        style = ("-", "--", ":")[number // 10 % 3]  # there are ten colours
        axis.plot(labels, ratios, style, marker="o", markersize=4, label=result.cell.case.name)
    axis.axhline(1.0, color="black", linewidth=1.5, label=OURS)
    axis.set_ylabel("mean E2E over that of e2")
    axis.grid(visible=True, alpha=0.25)
    if highest > 4:
        _log_scale(axis)
    axis.set_title(f"The paper's E2, each part added to those before it; {measured[0].cell.workers} workers, 80 % load")
    _legend(figure, axis)
    return _save(pyplot, figure, folder / "parts.png")


def _legend(figure: Any, axis: Any) -> None:
    """Of one axis, below all of them, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), fontsize=9, frameon=False)


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
