"""What `prebled explain` prints of predictions that did not come true."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from prebled.commands import explain
from prebled.core.decisions import Cause, Explanation, Placement
from prebled.core.types import RequestId, WorkerId

PLACEMENT = Placement(WorkerId("w1"), "exploit", "e2", 640, 60)


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cached: int, *why: Any) -> list[str]:
    explanation = Explanation(RequestId("r"), PLACEMENT, None, 1, cached, *why)

    class Told:
        def __init__(self, address: str) -> None:
            assert address == "tcp:there:1"

        def __enter__(self) -> Told:
            return self

        def __exit__(self, *error: object) -> None: ...

        def explain(self, request_id: str) -> Explanation:
            assert request_id == "r"
            return explanation

    monkeypatch.setattr(explain, "Client", Told)
    assert explain.run(argparse.Namespace(connect="tcp:there:1", request_id="r", json=False)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("cached", "cause", "words"),
    [
        (128, None, "mispredicted: 512 tokens fewer than matched; the cause is known when the request has ended"),
        (128, "evicted", "mispredicted: 512 tokens fewer than matched; evicted: "),
        (128, "not_computed", "mispredicted: 512 tokens fewer than matched; not computed: "),
        (128, "never_stored", "mispredicted: 512 tokens fewer than matched; never stored: "),
        (128, "other", "mispredicted: 512 tokens fewer than matched; other: "),
        (700, "more", "mispredicted: 60 tokens more than matched; more: "),
    ],
)
def test_the_difference_and_its_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cached: int, cause: Cause | None, words: str
) -> None:
    lines = printed(monkeypatch, capsys, cached, 640 - cached, cause)
    assert lines[2].startswith(words)


def test_what_came_true_needs_no_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not any("mispredicted" in line for line in printed(monkeypatch, capsys, 640))
