"""Draws replays of one trace beside each other: how TTFT and E2E are distributed under each policy.

matplotlib is not needed for anything else and is imported only here (extra `bench`).
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from prebled.bench.replay_report import ReplayResult
from prebled.errors import SettingsError

LEAST_S = 1e-3
"""Times below are drawn as this: the axis is logarithmic."""


def check_matplotlib() -> None:
    """Raises SettingsError if plots cannot be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SettingsError("a plot needs matplotlib: pip install 'prebled[bench]'", param="plot") from None


def plot(results: Sequence[ReplayResult]) -> bytes:
    """A PNG. The results are of one trace."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    report = results[0].report
    figure.suptitle(
        f"{report.trace}, {report.requests} requests x {report.rate_scale:g} on {report.workers} workers "
        f"({report.profile})"
    )
    ttft, e2e = figure.subplots(1, 2, sharey=True)
    _draw(ttft, "time to first token", [(result.report.policy, result.ttft_s) for result in results])
    _draw(e2e, "end to end", [(result.report.policy, result.e2e_s) for result in results])
    ttft.set_ylabel("share of requests")
    figure.legend(*e2e.get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    image = BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _draw(axes: Any, title: str, lines: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Cumulative distributions. They lie close together, so each has a dash pattern of its own beside a colour."""
    for number, (policy, seconds) in enumerate(lines):
        times = [max(time, LEAST_S) for time in sorted(seconds)]
        shares = [(index + 1) / len(times) for index in range(len(times))]
        style = ("-", "--", "-.", ":")[number % 4]
        axes.step(times, shares, style, where="post", label=policy, linewidth=1.6)
    axes.set_title(title)
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylim(0, 1.005)
    axes.grid(visible=True, which="both", alpha=0.25)
