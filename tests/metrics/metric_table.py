"""The table in docs/metrics.md, made from the metrics themselves. Run it to write the file anew."""

from __future__ import annotations

from pathlib import Path

from prebled.daemon.metrics import METRICS

PATH = Path(__file__).parents[2] / "docs" / "metrics.md"
HEAD = """# Metrics

Every HTTP address serves these at `/metrics`, as Prometheus text or OpenMetrics, whichever is asked for. Times are in
seconds; whatever ends in `_total` only grows, also over a worker's restarts. Ratios are left to queries, for instance

- cache hit rate: `rate(prebled_cached_tokens_total[5m]) / rate(prebled_prompt_tokens_total[5m])`
- share of an engine step not spent in the model:
  `1 - rate(prebled_step_model_seconds_total[5m]) / rate(prebled_step_seconds_total[5m])`
- requests rejected: `sum by (code) (rate(prebled_requests_rejected_total[5m]))`

Those of the process (`process_cpu_seconds_total`, `process_resident_memory_bytes`, ...) come with them. No label's
value is a client's: routes, codes, reasons and modes are closed sets, `model` is the served name, `worker` a worker's
id.

"""


def page() -> str:
    """The whole file."""
    rows = [("name", "type", "labels", "meaning"), ("---", "---", "---", "---")]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append((f"`{metric.name}`", metric.kind, labels, metric.help))
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
