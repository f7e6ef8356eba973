"""What the statistics of a trace say, on traces small enough to count by hand."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest

from prebled.bench.trace import Trace, TraceRequest, read_trace
from prebled.bench.trace_stats import measure_trace
from prebled.cli import main

BLOCK = 10


def request(arrival_s: float, tokens: int, *blocks: int, session: str = "") -> TraceRequest:
    return TraceRequest(arrival_s, tokens, 5, array("Q", blocks).tobytes(), session)


def test_sharing_by_hand() -> None:
    # The tree of all prompts: 1 has 2 3 4 5 below it, in two prompts of which one ends with 6; and 7 8, in one. Apart
    # from it 9. Key nodes: 2-5 (4 blocks after one) for the first two; 7-8 for the third; 9 for the last.
    stats = measure_trace(
        Trace(
            "t",
            BLOCK,
            (
                request(0, 64, 1, 2, 3, 4, 5, 6, session="a"),
                request(1, 50, 1, 2, 3, 4, 5),
                request(2, 40, 1, 7, 8),
                request(4, 16, 9, session="a"),
            ),
        )
    )
    assert (stats.requests, stats.roots, stats.distinct_blocks, stats.sessions) == (4, 2, 9, 1)
    assert (stats.duration_s, stats.rate, stats.dispersion) == (4.0, 0.75, None)
    assert stats.prompt_tokens.mean == 42.5
    assert (stats.prompt_tokens.p50, stats.prompt_tokens.max) == (45, 64)
    assert (stats.output_tokens.mean, stats.output_tokens.std) == (5, 0)
    assert stats.ideal_hit_ratio == pytest.approx(60 / 170, abs=1e-5)
    assert stats.shared.mean == pytest.approx((0 + 1 + 10 / 40 + 0) / 4)
    assert stats.key_portion.mean == pytest.approx((40 / 64 + 40 / 50 + 20 / 40 + 10 / 16) / 4, abs=1e-5)
    assert (stats.requests_per_key.mean, stats.requests_per_key.std) == pytest.approx((4 / 3, 0.47140), abs=1e-5)


def test_the_root_is_a_key_node_and_counts_all_that_have_it() -> None:
    # 1-4 is longer than what comes after it in the first two, not in the third, whose key node is 7-12.
    tail = (7, 8, 9, 10, 11, 12)
    stats = measure_trace(
        Trace(
            "t",
            BLOCK,
            (request(0, 50, 1, 2, 3, 4, 5), request(1, 50, 1, 2, 3, 4, 6), request(2, 100, 1, 2, 3, 4, *tail)),
        )
    )
    assert stats.key_portion.mean == pytest.approx((0.8 + 0.8 + 0.6) / 3, abs=1e-5)
    assert stats.requests_per_key.mean == 2.0  # of 1-4, three have it; of the other, one


def test_prompts_too_short_for_a_block_share_nothing() -> None:
    stats = measure_trace(Trace("t", BLOCK, (request(0, 9), request(0, 25, 1, 2), request(0, 9), request(0, 25, 1, 2))))
    assert stats.ideal_hit_ratio == pytest.approx(20 / 68, abs=1e-5)
    assert stats.key_portion.mean == pytest.approx(0.4)
    none = measure_trace(Trace("t", BLOCK, (request(0, 9), request(0, 9))))
    assert (none.ideal_hit_ratio, none.roots, none.distinct_blocks, none.requests_per_key.mean) == (0, 0, 0, 0)
    assert none.rate == 0.0


def test_dispersion_counts_whole_windows() -> None:
    # Windows of ten seconds with 1, 3 and 2 requests; the fourth is not over.
    times = [0, 10, 11, 19.9, 20, 29, 31]
    stats = measure_trace(Trace("t", BLOCK, tuple(request(at, 9) for at in times)))
    assert stats.dispersion == pytest.approx((2 / 3) / 2, abs=1e-3)


def test_a_closed_loop_has_a_rate_of_sessions() -> None:
    requests = (request(0, 9, session="a"), request(70, 9, session="a"), request(4, 9, session="b"))
    stats = measure_trace(Trace("t", BLOCK, requests, is_closed_loop=True))
    assert (stats.sessions, stats.duration_s, stats.rate, stats.dispersion) == (2, 4.0, 0.25, None)


class TestCommand:
    def test_a_generated_trace_is_written_and_read_back_as_the_same(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = "workload:toolbench*2+embodied?rate=5"
        out = tmp_path / "out.jsonl.zst"
        out.write_bytes(b"an older one")
        assert main(["bench", "trace", source, "--requests", "400", "--seed", "3", "--out", str(out), "--json"]) == 0
        generated = json.loads(capsys.readouterr().out)
        assert main(["bench", "trace", str(out), "--json"]) == 0
        written = json.loads(capsys.readouterr().out)
        assert (generated.pop("name"), written.pop("name")) == ("toolbench*2+embodied", "out.jsonl.zst")
        assert generated == written
        assert written["requests"] == 400
        for block_tokens in (16, 64):
            one = read_trace(source + "&requests=400", block_tokens=block_tokens, seed=3)
            other = read_trace(out, block_tokens=block_tokens, seed=3)
            assert one.requests == other.requests

    def test_it_prints_a_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "trace", "workload:videoqa?requests=100"]) == 0
        text = capsys.readouterr().out
        assert text.startswith("videoqa: 100 requests, open loop, sharing in blocks of 16 tokens\n")
        assert "ideal hit ratio" in text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["gone.jsonl"], "no such file: gone.jsonl"),
            (["workload:chat"], "unknown workload 'chat'; known are toolbench, embodied"),
            (["workload:toolbench", "--requests", "0"], "requests is 0"),
            (["workload:toolbench", "--block-tokens", "0"], "block_tokens is 0"),
            (["workload:toolbench", "--out", "gone/x.jsonl"], "gone/x.jsonl: No such file"),
        ],
    )
    def test_faults_are_one_line(self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
        assert main(["bench", "trace", *arguments]) == 1
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1

    def test_the_trace_itself_is_not_written_over(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "t.jsonl"
        path.write_text('{"arrival_ms": 0, "input_tokens": 9, "output_tokens": 1}\n')
        before = path.read_bytes()
        assert main(["bench", "trace", str(path), "--out", str(path)]) == 1
        assert "is the trace itself" in capsys.readouterr().err
        assert path.read_bytes() == before
