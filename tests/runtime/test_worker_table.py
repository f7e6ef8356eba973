"""What people are told of workers, whatever order the fabric and the supervisor speak in."""

from __future__ import annotations

from prebled.core.types import Epoch, WorkerId
from prebled.daemon.worker_table import WorkerTable
from prebled.messages import Beat, Capacity

W0 = WorkerId("w0")
CAPACITY = Capacity("m", "sim", "sim", 64, 10_000, 900, 1000, 2048, 8)


def ready_table(pid: int = 7) -> WorkerTable:
    table = WorkerTable()
    table.known(W0, Epoch(1), pid, "sim")
    table.ready(W0, CAPACITY)
    return table


def test_a_worker_that_dialled_in_before_it_was_found_stays_ready() -> None:
    table = ready_table(pid=7)
    table.expected(W0, 7, 2)
    assert table.any_ready()
    assert table.max_total_tokens() == 1000
    [status] = table.statuses()
    assert (status.state, status.restarts, status.kv_total_tokens) == ("ready", 2, 10_000)


def test_another_process_under_the_same_id_starts_anew() -> None:
    table = ready_table(pid=7)
    table.expected(W0, 8, 1)
    assert not table.any_ready()
    assert table.max_total_tokens() == 0
    [status] = table.statuses()
    assert (status.state, status.pid) == ("starting", 8)


def test_a_lost_worker_is_shown_with_the_reason_until_it_comes_back() -> None:
    table = ready_table()
    table.beat(W0, Beat(Epoch(1), "draining", queued=1, running=2, kv_used_tokens=3))
    assert [(s.state, s.queued, s.running, s.kv_used_tokens) for s in table.statuses()] == [("draining", 1, 2, 3)]
    table.lost(W0, "its process has ended")
    assert [(s.state, s.detail, s.running) for s in table.statuses()] == [("lost", "its process has ended", 0)]
    table.expected(W0, 7, 0)
    assert table.state(W0) == "starting"
