"""Workers' reports of their caches, rule by rule and fault by fault."""

from __future__ import annotations

from array import array

import pytest
from tree_paths import Path, block, book, chain, held, removed, stored, tree_of

from prebled.core.prefix_tree import PrefixTree
from prebled.core.reported import CREDIT_PER_REPORT, SNAPSHOT_AGAIN_S
from prebled.core.use_order import MOST_CREDIT
from prebled.messages import KvCleared, KvRemoved, KvStored

A, B, LONG = (0, 0, 0, 1), (0, 0, 0, 2, 2), (0,) * 12


def reporting(capacity: int = 100, max_blocks: int = 10**6) -> PrefixTree:
    """Two workers, of which that of slot 0 has said that it holds nothing."""
    tree = tree_of(capacity, max_blocks)
    tree.replace(0, [], 0.0)
    return tree


def report(tree: PrefixTree, *changes: KvStored | KvRemoved | KvCleared, now: float = 0.0) -> bool:
    wants = tree.report(0, changes, now)
    tree.check_invariants()
    return wants


def blocks(*paths: Path) -> set[bytes]:
    return {block(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}


def test_what_is_not_stored_by_the_end_of_its_request_is_taken_back() -> None:
    tree = reporting()
    visit = book(tree, LONG)
    report(tree, stored((), LONG[:8]))
    assert held(tree, LONG) == 12
    tree.release(visit)
    assert tree.held_hashes(0) == blocks(LONG[:8])
    tree.check_invariants()


def test_what_another_in_flight_is_to_compute_stays_expected() -> None:
    tree = reporting()
    first, second = book(tree, A), book(tree, B)
    tree.release(first)
    assert (held(tree, A), held(tree, B)) == (3, 5)
    tree.withdraw(second)
    assert tree.held_hashes(0) == set()


def test_chunks_and_outputs_are_stored_behind_what_was_booked() -> None:
    tree = reporting()
    visit = book(tree, LONG[:10])
    report(tree, stored((), LONG[:4]))
    report(tree, stored(LONG[:4], LONG[4:8]), stored(LONG[:8], LONG[8:10]))
    report(tree, stored(LONG[:10], (7, 7)))
    tree.release(visit)
    assert held(tree, (*LONG[:10], 7, 7)) == 12
    assert tree.report_statistics().stored_blocks == 12


def test_the_least_recently_used_is_not_guessed_away_from_a_worker_that_reports() -> None:
    tree = reporting(capacity=4)
    report(tree, stored((), (1, 1, 1)))
    book(tree, (2, 2, 2))
    assert (held(tree, (1, 1, 1)), held(tree, (2, 2, 2))) == (3, 3)
    tree.set_capacity(0, 2)
    assert held(tree, (1, 1, 1)) == 3


def test_from_the_first_report_on_only_what_is_in_flight_is_expected() -> None:
    tree = tree_of()
    tree.release(book(tree, A))
    running = book(tree, (5, 5))
    report(tree, stored((), (9,)))
    assert tree.held_hashes(0) == blocks((5, 5), (9,))
    tree.release(running)
    assert tree.held_hashes(0) == blocks((9,))


def test_a_removed_block_goes_with_all_below_it() -> None:
    tree = reporting()
    report(tree, stored((), A), stored(A[:3], B[3:]))
    report(tree, removed(A))
    assert tree.held_hashes(0) == blocks(B)
    report(tree, removed(B[:2]))
    assert tree.held_hashes(0) == blocks(B[:1])
    assert tree.report_statistics().removed_blocks == 5


def test_a_removed_block_is_expected_while_a_request_in_flight_is_to_compute_it_again() -> None:
    tree = reporting()
    report(tree, stored((), A), stored(A[:3], B[3:]))
    waiting = book(tree, A)
    report(tree, removed(A[:1]))
    assert tree.held_hashes(0) == blocks(A)
    report(tree, stored((), A[:2]))
    tree.release(waiting)
    assert tree.held_hashes(0) == blocks(A[:2])


@pytest.mark.parametrize("count", [1, 3, 9])
def test_blocks_inside_of_runs_are_found_by_searching(count: int) -> None:
    tree = reporting()
    runs = [(number, *range(10)) for number in range(20)]
    report(tree, *(stored((), run) for run in runs))
    report(tree, removed(*(run[:5] for run in runs[:count]), *(run[:3] for run in runs[:count])))
    assert [held(tree, run) for run in runs] == [*[2] * count, *[11] * (20 - count)]
    report(tree, stored(runs[-1][:7], (99,)))
    assert held(tree, (*runs[-1][:7], 99)) == 8
    statistics = tree.report_statistics()
    assert (statistics.unknown_parents, statistics.unknown_removed) == (0, 0)


def test_a_history_that_was_evicted_block_by_block_is_no_path_of_single_blocks() -> None:
    tree = reporting()
    visits = [book(tree, path) for path in (LONG, (*LONG[:6], 4))]
    report(tree, stored((), LONG), stored(LONG[:6], (4,)))
    for visit in visits:
        tree.release(visit)
    report(tree, removed((*LONG[:6], 4)))
    for end in range(len(LONG), 0, -1):
        report(tree, removed(LONG[:end]))
    assert tree.statistics().nodes == 3  # up to the fork, and to the ends of both requests
    assert tree.match(chain(LONG)).blocks == 12
    tree.withdraw(book(tree, LONG[:3]))
    tree.check_invariants()
    assert tree.statistics().nodes == 3
    report(tree, stored((), LONG), removed(LONG[:12]))  # each end is found by its hash again
    assert held(tree, LONG) == 11
    tree.advance(11.0)
    tree.check_invariants()
    report(tree, removed(LONG[:1]))
    assert tree.statistics().nodes == 0


def test_a_snapshot_replaces_all_but_what_is_in_flight() -> None:
    tree = reporting()
    report(tree, stored((), A), stored((), (8, 8)))
    running = book(tree, (7, 7))
    tree.replace(0, [stored((), B[:3]), stored(B[:3], B[3:]), stored((), (8,))], 1.0)
    assert tree.held_hashes(0) == blocks(B, (8,), (7, 7))
    tree.release(running)
    assert tree.held_hashes(0) == blocks(B, (8,))
    tree.replace(0, [], 2.0)
    assert tree.held_hashes(0) == set()
    tree.check_invariants()


def test_a_run_of_a_snapshot_may_be_split_by_the_next() -> None:
    tree = reporting()
    tree.replace(0, [stored((), A), stored(A[:1], A[1:]), stored(A[:2], (9,))], 0.0)
    assert tree.held_hashes(0) == blocks(A, (*A[:2], 9))
    tree.check_invariants()


def test_a_cleared_cache_holds_only_what_is_in_flight() -> None:
    tree = reporting()
    report(tree, stored((), A), stored((), (8, 8)))
    running = book(tree, (8, 8, 8))
    report(tree, KvCleared(), stored((), (4,)))
    assert tree.held_hashes(0) == blocks((8, 8, 8), (4,))
    tree.release(running)
    assert tree.held_hashes(0) == blocks((4,))
    assert tree.report_statistics().cleared == 1


def test_reports_of_one_worker_say_nothing_of_another() -> None:
    tree = reporting()
    tree.release(book(tree, A, slot=1))
    assert not report(tree, removed(A), KvCleared())
    assert held(tree, A, slot=1) == 4
    assert report(tree, stored(A, (5,)))  # that this one does not hold the parent is news
    assert tree.held_hashes(0) == set()
    assert tree.report_statistics().unknown_removed == 1


def test_an_unknown_parent_is_counted_and_a_snapshot_wanted_now_and_then() -> None:
    tree = reporting()
    assert report(tree, stored(A, (1,)), stored((), (2,)), now=100.0)
    assert tree.held_hashes(0) == blocks((2,))
    assert not report(tree, stored(A, (1,)), now=100.0 + SNAPSHOT_AGAIN_S / 2)
    assert report(tree, stored(A, (1,)), now=100.0 + SNAPSHOT_AGAIN_S)
    assert not tree.replace(0, [stored(A, (1,))], 100.0 + SNAPSHOT_AGAIN_S)
    assert tree.replace(0, [stored(A, (1,))], 100.0 + 2 * SNAPSHOT_AGAIN_S)
    statistics = tree.report_statistics()
    assert (statistics.unknown_parents, statistics.snapshots_wanted, statistics.snapshots) == (5, 3, 3)


def test_repeated_and_contradictory_reports_change_nothing_more() -> None:
    tree = reporting()
    for _ in range(2):
        report(tree, stored((), A), stored((), A[:2]), stored(A[:2], A[2:]))
        assert tree.held_hashes(0) == blocks(A)
    assert not report(tree, removed(A, A), removed(A[:3]), removed(A))
    assert tree.held_hashes(0) == blocks(A[:2])
    assert tree.report_statistics().unknown_removed == 2
    report(tree, removed(A[:1]), stored((), A), removed(A[:1]), stored((), A))
    assert tree.held_hashes(0) == blocks(A)


@pytest.mark.parametrize(
    "change",
    [KvStored(b"", b"1234567"), KvStored(b"123", chain(A)), KvStored(b"", b""), KvStored(b"12345678" * 2, chain(A))],
)
def test_what_is_no_run_of_hashes_is_counted_and_left_out(change: KvStored) -> None:
    tree = reporting()
    assert report(tree, change)
    assert tree.report_statistics().malformed == 1
    assert tree.held_hashes(0) == set()
    report(tree, KvRemoved(b"123"), KvRemoved(b""))
    assert tree.report_statistics().malformed == 2


def test_a_worker_that_was_forgotten_begins_anew() -> None:
    tree = reporting()
    visit = book(tree, A)
    report(tree, stored((), A))
    tree.forget_worker(0)
    assert (tree.held_hashes(0), tree.use_order(0).reports) == (set(), False)
    assert not report(tree, removed(A), now=1.0)
    assert report(tree, stored(A, (1,)), now=1.0)
    tree.release(visit)
    report(tree, stored((), A))
    assert tree.held_hashes(0) == blocks(A)


def test_at_the_bound_what_was_reported_goes_last_and_is_not_asked_for_again() -> None:
    tree = reporting(capacity=10**6, max_blocks=80)
    report(tree, stored((), (1,) * 40))
    tree.release(book(tree, (2,) * 30, slot=1))
    report(tree, stored((), (3,) * 40))
    assert (held(tree, (1,) * 40), held(tree, (2,) * 30, 1), held(tree, (3,) * 40)) == (40, 0, 40)
    report(tree, stored((3,) * 40, (4,) * 40))  # nothing is left that was only guessed
    assert (held(tree, (1,) * 40), held(tree, (3,) * 40)) == (0, 40)
    assert not report(tree, stored((1,) * 40, (5,)), removed((1,) * 40), now=100.0)
    assert tree.held_hashes(0) == blocks((3,) * 40 + (4,) * 40)


def test_a_worker_that_talks_nonsense_is_not_searched_for_without_end() -> None:
    tree = reporting(capacity=10**6)
    report(tree, stored((), tuple(range(5000))))
    order = tree.use_order(0)
    nonsense = KvRemoved(array("Q", range(100)).tobytes())
    for _ in range(MOST_CREDIT // (5000 - CREDIT_PER_REPORT) + 1):
        tree.report(0, [nonsense], 0.0)
    assert order.credit < 5000  # what a report earns is less than a search costs
    order.credit = 0
    assert report(tree, removed(tuple(range(50))), now=100.0)  # inside of a run, and not searched for
    assert held(tree, tuple(range(60))) == 60
    report(tree)
    report(tree, removed(tuple(range(50))))
    assert held(tree, tuple(range(60))) == 49


def test_paths_that_share_a_hash_by_chance_break_nothing() -> None:
    def path(*hashes: int) -> bytes:
        return array("Q", hashes).tobytes()

    tree = reporting()
    tree.release(book(tree, (0,)))
    changes: list[KvStored | KvRemoved | KvCleared] = [
        KvStored(b"", path(1, 2, 3)),
        KvStored(b"", path(9, 2, 4)),  # the same block behind another one
        KvStored(path(1), path(5)),
        KvStored(path(9), path(6)),
        KvStored(b"", path(2)),
        KvStored(path(2), path(2, 2)),  # behind itself
        KvStored(path(3), path(1, 2)),
        KvStored(path(4), path(4)),
        KvRemoved(path(2)),
        KvStored(path(2), path(7)),
        KvRemoved(path(4, 9)),
        KvRemoved(path(2, 2, 1)),
        KvStored(b"", path(1, 2, 3)),
    ]
    for change in changes:
        tree.book(tree.match(path(1, 2, 4, 8)), 1, 0.0)
        report(tree, change)
    assert tree.report_statistics().collisions
    tree.replace(0, [change for change in changes if isinstance(change, KvStored)], 0.0)
    tree.check_invariants()
    report(tree, KvCleared())
    assert tree.held_hashes(0) == set()
