"""What `bench serve` sends: made-up prompts that share what a trace says they share."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest

from prebled.bench.serve_jobs import FIRST_ID, IDS, Job, sessions, text_jobs, trace_jobs
from prebled.bench.trace import Trace, TraceRequest
from prebled.errors import SettingsError

BLOCK = 16


def path(*hashes: int) -> bytes:
    return np.array(hashes, "<u8").tobytes()


def request(hashes: tuple[int, ...], prompt_tokens: int, **more: object) -> TraceRequest:
    return TraceRequest(0.5, prompt_tokens, 9, path(*hashes), **more)  # type: ignore[arg-type]


def test_prompts_are_equal_where_their_blocks_are() -> None:
    requests = (request((11, 12, 13), 60), request((11, 12, 99), 60), request((11, 12, 13), 60), request((), 7))
    jobs = trace_jobs(Trace("t", BLOCK, requests))
    first, second, third, short = (job.tokens.tolist() for job in jobs)
    assert [len(job.tokens) for job in jobs] == [60, 60, 60, 7]
    assert first[:32] == second[:32]
    assert first[32:48] != second[32:48]
    assert first[:48] == third[:48]
    assert first[48:] != third[48:]  # beyond the last full block nothing is shared
    assert len({*first, *second}) > 60  # not the same few ids over and over
    assert all(FIRST_ID <= token < FIRST_ID + IDS for token in [*first, *second, *short])


def test_times_and_lengths_are_those_of_the_trace() -> None:
    turns = (request((1,), 20, session="s", think_s=3.0),)
    assert trace_jobs(Trace("t", BLOCK, turns), most_tokens=4)[0].max_tokens == 4
    (open_loop,) = trace_jobs(Trace("t", BLOCK, turns))
    assert (open_loop.max_tokens, open_loop.arrival_s, open_loop.session) == (9, 0.5, "")
    (closed_loop,) = trace_jobs(Trace("t", BLOCK, turns, is_closed_loop=True))
    assert (closed_loop.session, closed_loop.think_s) == ("s", 3.0)


def test_only_jobs_of_one_session_wait_for_each_other() -> None:
    a, b, alone, c = (Job(array("I", [1]), 1, session=name) for name in ("x", "y", "", "x"))
    other = Job(array("I", [2]), 1)
    assert sessions([a, b, alone, c, other]) == [[a, c], [b], [alone], [other]]


def test_texts_want_a_model_to_tokenise_with(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no tokenizer\.json there"):
        text_jobs(tmp_path, tmp_path / "texts", requests=1, lists=1, zipf=1.0, max_tokens=1, seed=0)
