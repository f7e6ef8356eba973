"""How much of the machine other programs take while something is measured on it. Linux only: read from `/proc`.

Ours are this process and all that it has started, directly or not. What a hypervisor gives to other machines counts as
another program's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple, final


class _Times(NamedTuple):
    at: float
    busy_s: float
    own_s: float


@final
class OtherPrograms:
    """Measures from its making on. Its own processes should all be there by then, and not end meanwhile."""

    def __init__(self) -> None:
        self._start = _times()

    def cores(self) -> float:
        """How many cores were busy with other programs since, on average."""
        start, end = self._start, _times()
        others_s = (end.busy_s - start.busy_s) - (end.own_s - start.own_s)
        return max(others_s / (end.at - start.at), 0.0)


def _times() -> _Times:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    parents, ticks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        pid = int(folder.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    busy = user + nice + system + irq + softirq + steal
    return _Times(time.monotonic(), busy * tick_s, sum(ticks.get(pid, 0) for pid in own) * tick_s)
