"""The set-ups of Preble's evaluation (ICLR'25, section 4) with the latencies its authors published.

Rates and the mean and 99th percentile of end-to-end latency are read off the curves of the authors' blog post on Preble
(mlsys.wuklab.io), for Preble, for SGLang behind round robin, and for an offline partition of the prompts. What the
post does not say is in `RUN_S` and `PATTERNS`, from the released configurations of the ToolBench runs; the other runs
are taken to be as long.
"""

from __future__ import annotations

import msgspec

RUN_S = 300
"""Seconds of arrivals: the ToolBench runs have 300 requests for each request/s."""

PATTERNS = 100
"""Tool lists for each worker in the ToolBench runs: requests share their prompts in so many groups."""


class Machines(msgspec.Struct, frozen=True):
    """GPUs and model of a set-up, and the profile and number of workers that stand for them."""

    name: str
    profile: str
    workers: int


class Latency(msgspec.Struct, frozen=True):
    """End to end, seconds."""

    mean: float
    p99: float


class PaperSetup(msgspec.Struct, frozen=True):
    """One point of the published curves. `rate`: requests/s of all GPUs together. `workload`: as the generators name
    it."""

    machines: Machines
    workload: str
    rate: float
    preble: Latency
    partition: Latency
    round_robin: Latency

    def source(self, rate: float) -> str:
        """The generated trace for this set-up, at this or another rate."""
        groups = f"&groups={PATTERNS * self.machines.workers}" if self.workload == "toolbench" else ""
        return f"workload:{self.workload}?rate={rate!r}&requests={max(round(RUN_S * rate), 1)}{groups}"


_TWO = Machines("2 A6000, Mistral-7B", "mistral-7b-a6000", 2)
_FOUR = Machines("4 A6000, Mistral-7B", "mistral-7b-a6000", 4)
_EIGHT = Machines("8 H100, Llama-3-70B", "llama-3-70b-4xh100", 2)


def _setup(
    machines: Machines, workload: str, rate: float, mean: tuple[float, float, float], p99: tuple[float, float, float]
) -> PaperSetup:
    """`mean` and `p99`: of Preble, of the partition, of SGLang behind round robin."""
    preble, partition, round_robin = (Latency(*pair) for pair in zip(mean, p99, strict=True))
    return PaperSetup(machines, workload, rate, preble, partition, round_robin)


SETUPS = (
    _setup(_TWO, "toolbench", 9.0, (10.1, 18.4, 37.7), (22.9, 62.3, 76.6)),
    _setup(_TWO, "toolbench", 18.0, (63, 78, 121), (194, 310, 347)),
    _setup(_TWO, "embodied", 9.0, (7.0, 3.1, 14.1), (18, 23, 49)),
    _setup(_TWO, "programming", 4.0, (156, 168, 192), (485, 711, 775)),
    _setup(_TWO, "videoqa", 3.0, (3.7, 24.0, 33.9), (14, 63, 76)),
    _setup(_TWO, "loogle", 0.5, (14.4, 31.1, 46.6), (35, 98, 242)),
    _setup(_FOUR, "toolbench", 18.0, (19.4, 25.3, 46.1), (64, 67, 96)),
    _setup(_FOUR, "toolbench", 36.0, (104, 109, 164), (258, 357, 409)),
    _setup(_FOUR, "embodied", 24.0, (4.7, 3.2, 19.9), (20, 22, 45)),
    _setup(_FOUR, "programming", 5.0, (40, 64, 74), (96, 327, 443)),
    _setup(_FOUR, "videoqa", 6.0, (3.4, 24.4, 47.3), (15, 65, 102)),
    _setup(_FOUR, "loogle", 1.0, (15.1, 18.3, 50.7), (39, 77, 241)),
    _setup(_EIGHT, "toolbench", 18.0, (6.8, 11.5, 11.2), (14, 27, 34)),
    _setup(_EIGHT, "embodied", 15.0, (2.5, 2.6, 9.3), (17, 20, 35)),
    _setup(_EIGHT, "programming", 5.0, (14.3, 17.2, 51.5), (44, 52, 145)),
    _setup(_EIGHT, "videoqa", 5.0, (17.2, 20.8, 39.6), (37, 89, 164)),
    _setup(_EIGHT, "loogle", 0.8, (2.9, 7.0, 5.7), (7, 27, 24)),
)
