"""HTTP requests, counted by route and class of status. Routes are the application's own templates: what a client asks
for besides is `other`, so that no client can make labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prebled.daemon.metrics_text import Family, counter, pairs

OTHER_ROUTES = "other"

REQUESTS = counter(
    "prebled_http_requests_total",
    "HTTP answers begun, by route and class of status; gone: the client left before that.",
    *("route", "status"),
)
METRICS = (REQUESTS,)


class HttpMeter:
    """Counts what the application answers."""

    def __init__(self) -> None:
        self._answered: Counter[tuple[str, str]] = Counter()

    def answered(self, route: str, status: int) -> None:
        """The answer to a request at `route`, one of the application's, begins."""
        self._answered[route, f"{status // 100}xx"] += 1

    def gone(self, route: str) -> None:
        """The client left before an answer began."""
        self._answered[route, "gone"] += 1

    def families(self) -> Iterator[Family]:
        """For `/metrics`."""
        rows = [(f"{{{pairs(REQUESTS.labels, key)}}}", count) for key, count in self._answered.items()]
        yield Family(REQUESTS, rows)
