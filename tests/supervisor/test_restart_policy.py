"""When dead workers are started again, by a clock that the test moves."""

from __future__ import annotations

from prebled.daemon.restart_policy import RestartPolicy


def test_delays_double_up_to_the_most() -> None:
    policy = RestartPolicy(1, 10)
    assert [policy.delay_after_exit(now) for now in range(6)] == [1, 2, 4, 8, 10, 10]


def test_long_service_resets_the_delay() -> None:
    policy = RestartPolicy(1, 10)
    policy.delay_after_exit(0)
    policy.delay_after_exit(1)
    policy.ready(100)
    assert policy.delay_after_exit(110) == 1
    assert policy.delay_after_exit(111) == 2


def test_short_service_does_not() -> None:
    policy = RestartPolicy(1, 10)
    policy.delay_after_exit(0)
    policy.ready(100)
    assert policy.delay_after_exit(109.9) == 2


def test_loading_for_long_does_not_either() -> None:
    policy = RestartPolicy(1, 10)
    policy.delay_after_exit(0)
    assert policy.delay_after_exit(1000) == 2


def test_being_ready_again_does_not_restart_the_proof() -> None:
    policy = RestartPolicy(1, 10)
    policy.delay_after_exit(0)
    policy.ready(0)
    policy.ready(9)  # its connection had been lost
    assert policy.delay_after_exit(10) == 1


def test_the_most_bounds_the_first() -> None:
    assert RestartPolicy(5, 2).delay_after_exit(0) == 2
