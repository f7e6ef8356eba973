"""Metrics as text: what a metric is, histograms that are cheap to feed, and the two formats Prometheus reads.

The formats and the choice between them are `prometheus_client`'s. The lines are written here, because they are written
on the loop that passes tokens on: a daemon with 512 workers has 20,000 of them, for which that library's own writers
take five times as long (OpenMetrics: ten times), and its histograms take five times as long to feed. Names here need no
escaping, label values do. Not known here: what is measured.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, CONTENT_TYPE_PLAIN_1_0_0, choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "info"]
Sample: TypeAlias = tuple[str, float]
"""What follows the metric's name (a suffix, labels in braces, nothing), and the value."""

MOST_ACCEPT_CHARS = 4096
"""Of an Accept header; the rest is not looked at."""


class Metric(NamedTuple):
    """A metric's name, type, meaning (no quotes, no backslashes: it is not escaped) and labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def one(self, value: float) -> Family:
        """Of a metric without labels."""
        return Family(self, [("", value)])

    def by(self, values: Mapping[str, float]) -> Family:
        """One sample per value of the metric's one label."""
        (label,) = self.labels
        return Family(self, [(f'{{{label}="{escape(name)}"}}', value) for name, value in values.items()])

    def facts(self, *values: str) -> Family:
        """Of an info: the values of its labels."""
        return Family(self, [(f"{{{pairs(self.labels, values)}}}", 1)])


class Family(NamedTuple):
    """A metric with its samples."""

    metric: Metric
    samples: Iterable[Sample]


def counter(name: str, meaning: str, *labels: str) -> Metric:
    """What only grows. The name ends in `_total`."""
    return Metric(name, "counter", meaning, labels)


def gauge(name: str, meaning: str, *labels: str) -> Metric:
    """What goes up and down."""
    return Metric(name, "gauge", meaning, labels)


def histogram(name: str, meaning: str, *labels: str) -> Metric:
    """A distribution; see `Histogram`."""
    return Metric(name, "histogram", meaning, labels)


def info(name: str, meaning: str, *labels: str) -> Metric:
    """Facts that are words: always 1. The name ends in `_info`."""
    return Metric(name, "info", meaning, labels)


def escape(value: str) -> str:
    """A label's value as it stands between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def pairs(labels: Iterable[str], values: Iterable[str]) -> str:
    """`a="x",b="y"`, escaped."""
    return ",".join([f'{label}="{escape(value)}"' for label, value in zip(labels, values, strict=True)])


class Histogram:
    """Counts by bucket. `bounds`: the upper ends of all buckets but the last, ascending, each end included. Who feeds
    it thousands of times a second may do what `observe` does by itself."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self, labels: str = "") -> Iterator[Sample]:
        """Cumulative buckets, count and sum. `labels`: as `pairs` writes them."""
        before = f"{labels}," if labels else ""
        count = 0
        for bound, own in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            count += own
            yield f'_bucket{{{before}le="{bound}"}}', count
        braced = f"{{{labels}}}" if labels else ""
        yield f"_count{braced}", count
        yield f"_sum{braced}", self.sum


def content_type(accept: str) -> str:
    """What to answer to this Accept header, as `prometheus_client` chooses; it also takes what is malformed for a wish,
    so versions and escapings that are not known here become those that every reader knows."""
    try:
        _, wanted = choose_encoder(accept[:MOST_ACCEPT_CHARS])
    except TypeError:  # a version that is no number
        wanted = ""
    plain, _, escaping = wanted.partition("; escaping=")
    if plain in (CONTENT_TYPE_PLAIN_1_0_0, CONTENT_TYPE_OPENMETRICS):
        return wanted if escaping in ("underscores", "allow-utf-8") else plain
    return CONTENT_TYPE_OPENMETRICS if is_openmetrics(wanted) else CONTENT_TYPE_PLAIN_0_0_4


def is_openmetrics(chosen: str) -> bool:
    """Whether this content type is OpenMetrics, not Prometheus' own text."""
    return chosen.startswith("application/openmetrics-text")


def render(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """The text of these families, each with its HELP and TYPE even if it has no samples yet."""
    parts: list[str] = []
    for metric, samples in families:
        name, kind = _head(metric, openmetrics=openmetrics)
        parts.append(f"# HELP {name} {metric.help}\n# TYPE {name} {kind}\n")
        full = metric.name
        parts += [f"{full}{text} {value}\n" for text, value in samples]
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _head(metric: Metric, *, openmetrics: bool) -> tuple[str, str]:
    """Name and type as the HELP and TYPE lines of a format want them."""
    if not openmetrics:
        return metric.name, "gauge" if metric.kind == "info" else metric.kind
    return metric.name.removesuffix("_total").removesuffix("_info"), metric.kind
