"""The prefix tree's rules one by one; reports of workers are in `test_reported.py`, random sequences in their own."""

from __future__ import annotations

from array import array

import pytest
from tree_paths import WINDOW_S, book, chain, held, tree_of

FAR = 10  # more slots than are counted bit by bit


def test_match_counts_every_worker_at_block_granularity() -> None:
    tree = tree_of(workers=FAR)
    book(tree, (1, 1, 1, 1), slot=0)
    for slot in range(1, FAR - 1):
        book(tree, (1, 1), slot)
    book(tree, (1, 2, 2), slot=FAR - 1)
    assert tree.match(chain((1, 1, 1, 3))).held_blocks(FAR).tolist() == [3, *[2] * (FAR - 2), 1]
    assert tree.match(chain((1, 1, 1, 3))).blocks == 3
    assert tree.match(chain((9,))).held_blocks(FAR).tolist() == [0] * FAR


def test_the_leaf_used_longest_ago_goes_first_and_its_prefix_stays() -> None:
    tree = tree_of(capacity=8)
    book(tree, (0, 0, 0, 0))
    book(tree, (0, 0, 1, 1))
    book(tree, (0, 0, 0, 0))  # now the other branch is the colder one
    book(tree, (2, 2, 2))  # 6 + 3 blocks in 8
    assert (held(tree, (0, 0, 1, 1)), held(tree, (0, 0, 0, 0)), held(tree, (2, 2, 2))) == (2, 4, 3)


def test_a_split_keeps_the_place_of_both_parts_in_the_order_of_every_holder() -> None:
    tree = tree_of(capacity=6)
    book(tree, (0, 0, 0, 0), slot=1, now=1.0)
    book(tree, (1, 1), slot=1, now=2.0)
    book(tree, (0, 0, 5), slot=0, now=3.0)  # splits the run that slot 1 used before (1, 1)
    book(tree, (2, 2, 2, 2), slot=1, now=4.0)  # 4 too many: both parts of the old run, not the newer one
    assert (held(tree, (0, 0, 0, 0), 1), held(tree, (1, 1), 1)) == (0, 2)


def test_nodes_live_while_held_or_asked_for_in_the_window() -> None:
    tree = tree_of(workers=1)
    book(tree, (0, 0), now=0.0)
    book(tree, (1, 1), now=5.0)
    tree.forget_worker(0)
    assert tree.statistics().blocks == 4
    tree.advance(10.0)
    assert (tree.statistics().blocks, tree.hits(chain((1, 1)))) == (2, {0: 1})
    tree.advance(15.0)
    assert (tree.statistics().blocks, tree.statistics().nodes, tree.statistics().visits) == (0, 0, 0)


def test_catching_up_with_the_window_goes_in_small_steps() -> None:
    tree = tree_of()
    for number in range(10):
        book(tree, (number,), now=0.0)
    tree.advance(100.0, limit=4)
    assert tree.statistics().visits == 6
    tree.advance(100.0, limit=4)
    tree.advance(100.0, limit=4)
    assert tree.statistics().visits == 0


def test_a_withdrawn_booking_leaves_what_others_share() -> None:
    tree = tree_of()
    first = book(tree, (0, 0, 1))
    second = book(tree, (0, 0, 2))
    tree.withdraw(first)
    assert (held(tree, (0, 0, 1)), held(tree, (0, 0, 2))) == (2, 3)
    tree.withdraw(second)
    tree.withdraw(second)  # once is enough
    tree.release(second)
    assert tree.statistics().nodes == 0


def test_a_withdrawn_booking_leaves_what_was_held_before() -> None:
    tree = tree_of()
    book(tree, (0, 0), now=0.0)
    tree.advance(WINDOW_S)
    visit = book(tree, (0, 0, 1, 1), now=WINDOW_S)
    tree.withdraw(visit)
    assert (held(tree, (0, 0, 1, 1)), tree.hits(chain((0,)))) == (2, {})


def test_a_withdrawn_booking_leaves_what_another_in_flight_is_to_compute() -> None:
    tree = tree_of()
    first = book(tree, (0, 0), now=0.0)
    second = book(tree, (0, 0), now=1.0)
    tree.advance(2 * WINDOW_S)  # neither is in the window any more
    tree.withdraw(second)
    assert held(tree, (0, 0)) == 2
    tree.withdraw(first)
    assert tree.statistics().nodes == 0


def test_a_request_that_ends_after_its_holding_is_over_changes_nothing() -> None:
    tree = tree_of()
    lost = book(tree, (0, 0))
    tree.forget_worker(0)
    again = book(tree, (0, 0))
    tree.withdraw(lost)
    tree.check_invariants()
    assert held(tree, (0, 0)) == 2
    tree.withdraw(again)
    assert tree.statistics().nodes == 0


def test_a_path_that_was_used_through_stays_as_long_as_if_it_had_been_marked() -> None:
    tree = tree_of(capacity=8)
    book(tree, (0, 0))
    book(tree, (1, 1, 1))
    book(tree, (0, 0, 5))  # marks its end alone, but was used all along
    book(tree, (2, 2, 2))  # one too many: (1, 1, 1) is the oldest
    assert (held(tree, (0, 0, 5)), held(tree, (1, 1, 1))) == (3, 0)
    book(tree, (3, 3))  # nothing too many
    book(tree, (4,))  # now the end of (0, 0, 5), which alone is the oldest
    assert (held(tree, (0, 0, 5)), held(tree, (2, 2, 2))) == (2, 3)
    book(tree, (6,))  # and then what was before it
    assert (held(tree, (0, 0, 5)), held(tree, (2, 2, 2))) == (0, 3)
    tree.check_invariants()


def test_past_max_blocks_the_coldest_unheld_go_then_the_coldest() -> None:
    tree = tree_of(max_blocks=32)
    book(tree, (0,) * 10, slot=1, now=1.0)
    book(tree, (1,) * 10, slot=0, now=2.0)
    book(tree, (2,) * 10, slot=1, now=3.0)
    tree.forget_worker(0)  # (1, ...) is known of, but nobody holds it; older ones are held
    book(tree, (3,) * 10, slot=1, now=4.0)
    assert [tree.match(chain((n,) * 10)).blocks for n in range(4)] == [10, 0, 10, 10]
    book(tree, (4,) * 10, slot=0, now=5.0)
    assert [tree.match(chain((n,) * 10)).blocks for n in range(5)] == [0, 0, 10, 10, 10]
    tree.check_invariants()


def test_short_runs_are_bounded_too() -> None:
    tree = tree_of(capacity=10**9, max_blocks=800)
    for number in range(5_000):
        book(tree, (number,), slot=number % 2, now=number * 1e-6)
    assert tree.statistics().nodes <= 100
    assert tree.statistics().visits <= 100
    tree.check_invariants()


def test_a_stale_match_is_made_anew() -> None:
    tree = tree_of()
    match = tree.match(chain((0, 0, 1)))
    book(tree, (0, 0, 2), slot=1)
    tree.book(match, 0, 0.0)
    tree.check_invariants()
    assert tree.match(chain((0, 0, 1))).held_blocks(2).tolist() == [3, 2]


def test_capacity_that_shrinks_is_obeyed_at_once() -> None:
    tree = tree_of()
    book(tree, (0, 0))
    book(tree, (1, 1))
    tree.set_capacity(0, 3)
    assert (held(tree, (0, 0)), held(tree, (1, 1))) == (0, 2)


@pytest.mark.parametrize("shared", range(6))
def test_a_match_ends_where_the_path_leaves_a_run(shared: int) -> None:
    tree = tree_of()
    book(tree, (0,) * 5)
    assert tree.match(chain((0,) * shared + (1,) * (5 - shared))).blocks == shared


def test_runs_that_share_a_later_hash_by_chance_differ_where_they_first_do() -> None:
    tree = tree_of()
    for hashes in ([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], [1, 2, 9, 4, 5]):
        tree.book(tree.match(array("Q", hashes).tobytes()), 0, 0.0)
        tree.check_invariants()
    assert tree.match(array("Q", [1, 9, 3, 4, 5]).tobytes()).blocks == 5
    assert tree.statistics().blocks == 12
