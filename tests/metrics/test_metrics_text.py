"""The text of metrics: against `prometheus_client`'s own parsers and writers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, generate_latest
from prometheus_client import Histogram as TheirHistogram
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from prebled.daemon.metrics_text import (
    Family,
    Histogram,
    content_type,
    counter,
    gauge,
    histogram,
    info,
    is_openmetrics,
    pairs,
    render,
)

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
AWKWARD = 'quote " backslash \\ newline \n snow \u2603 brace }'
VALUES = (0.0004, 0.001, 0.0011, 7.0, 0.25)
BOUNDS = (0.001, 0.01, 1.0)


def ours() -> Iterator[Family]:
    """One metric of each kind."""
    times = Histogram(BOUNDS)
    for value in VALUES:
        times.observe(value)
    yield counter("things_total", "Things.", "kind").by({"plain": 3, AWKWARD: 2.5})
    yield gauge("level", "A level.").one(-1.5)
    yield Family(histogram("times_seconds", "Times.", "who"), times.samples(pairs(("who",), ("me",))))
    yield info("about_info", "About.", "a", "b").facts("x", AWKWARD)
    yield counter("nothing_total", "Nothing yet.", "kind").by({})


def theirs() -> CollectorRegistry:
    """The same, by the library."""
    registry = CollectorRegistry()
    things = Counter("things", "Things.", ["kind"], registry=registry)
    things.labels("plain").inc(3)
    things.labels(AWKWARD).inc(2.5)
    Gauge("level", "A level.", registry=registry).set(-1.5)
    times = TheirHistogram("times_seconds", "Times.", ["who"], buckets=BOUNDS, registry=registry)
    for value in VALUES:
        times.labels("me").observe(value)
    Info("about", "About.", registry=registry).info({"a": "x", "b": AWKWARD})
    Counter("nothing", "Nothing yet.", ["kind"], registry=registry)
    return registry


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_text_says_what_the_library_s_would(openmetrics: bool) -> None:
    parse = parse_openmetrics if openmetrics else parse_plain
    own = list(parse(render(ours(), openmetrics=openmetrics).decode()))
    written = generate_openmetrics(theirs()) if openmetrics else generate_latest(theirs())
    library = [family for family in parse(written.decode()) if not family.name.endswith("_created")]
    assert [(one.name, one.type, one.documentation) for one in own] == [
        (one.name, one.type, one.documentation) for one in library
    ]
    for family, other in zip(own, library, strict=True):
        wanted = [sample for sample in other.samples if not sample.name.endswith("_created")]
        assert [tuple(sample[:3]) for sample in family.samples] == [tuple(sample[:3]) for sample in wanted]


def test_histogram_buckets_include_their_upper_end() -> None:
    subject = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, math.nextafter(1.0, 2.0), 2.0, 2.5, 1e9):
        subject.observe(value)
    assert subject.counts == [2, 2, 2]
    samples = dict(subject.samples())
    assert samples['_bucket{le="1.0"}'] == 2
    assert samples['_bucket{le="2.0"}'] == 4
    assert samples['_bucket{le="+Inf"}'] == samples["_count"] == 6
    assert samples["_sum"] == pytest.approx(1e9 + 6.5)


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("application/openmetrics-text", OPENMETRICS),
        (PROMETHEUS_3, f"{OPENMETRICS}; escaping=allow-utf-8"),
        # What nobody asks for honestly: answered with what every reader knows, never repeated.
        ("application/openmetrics-text;version=1.0.0;escaping=dots", OPENMETRICS),
        ("application/openmetrics-text;version=77.0.0", OPENMETRICS),
        ("application/openmetrics-text;version=1.x", PLAIN),
        ("application/openmetrics-text;version=", OPENMETRICS),
        ("text/plain;version=1.0.0;escaping=\x00", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        (";=,;=,\xff" * 5000, PLAIN),
    ],
)
def test_the_format_follows_the_accept_header(accept: str, answer: str) -> None:
    assert content_type(accept) == answer
    assert is_openmetrics(answer) == answer.startswith("application/")
