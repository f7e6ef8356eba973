"""The simulator against real SGLang workers on the CPU: the same requests, costs fitted on this machine.

Cached tokens must be equal for every request that no race decides, always. Times are another matter on a small machine
that others use too: medians within 15 % are asked of the best of five rounds, each calibrated just before and after,
with one worker, so that client, daemon and worker have a core to themselves. Where none comes so close, and either
the best is within 30 % (rounds of one run differ by as much) or other programs took part of the machine in every one of
them, the machine was not steady enough to tell; the test is then skipped and says what it saw.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from prebled.bench.validate import Plan, validate

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]

WANTED, UNSTEADY = 0.15, 0.30

QUIET_CORES = 0.1
"""Other programs may keep so much busy."""


@pytest.mark.parametrize("policy", ["e2", "round-robin"])
async def test_two_workers_take_from_their_caches_what_simulated_ones_do(tiny_model: Path, policy: str) -> None:
    plan = Plan(policies=(policy,), workers=2, requests=60, busy=0.2, rounds=1)
    (one,) = (await validate(tiny_model, plan, print)).rounds
    assert one.cached.requests == 60
    assert one.cached.real > 0
    assert one.cached.certain >= 30
    assert one.cached.certain_unequal == []


async def test_median_times_are_within_15_percent(tiny_model: Path) -> None:
    plan = Plan(policies=("e2",), workers=1, requests=80, rounds=5)
    rounds = (await validate(tiny_model, plan, print)).rounds
    assert all(not one.cached.certain_unequal for one in rounds)
    off = [(round(one.ttft_error, 3), round(one.e2e_error, 3)) for one in rounds]
    best = min(max(abs(ttft), abs(e2e)) for ttft, e2e in off)
    others = [one.others_cores for one in rounds]
    if best > WANTED and (best < UNSTEADY or min(others) > QUIET_CORES):
        pytest.skip(f"TTFT and E2E were off by {off}, with {others} cores busy otherwise")
    assert best <= WANTED, off
