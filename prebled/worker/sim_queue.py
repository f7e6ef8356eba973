"""The waiting runs of a simulated batch, and in which order they may be admitted.

It tells the `LocalScheduler` what a run's cached share is when it comes and whenever the cache has changed it, and
nothing else; without one the runs go as they came. Which blocks are cached, its watches in the cache know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

from prebled.core.blocks import cacheable_blocks
from prebled.core.local_scheduler import LocalScheduler
from prebled.core.types import RunId
from prebled.worker.sim_cache import BlockCache
from prebled.worker.sim_run import SimRun
from prebled.worker.sim_watches import CacheNode, Watch


@final
class SimQueue:
    """See the module."""

    def __init__(self, cache: BlockCache, block_tokens: int, scheduler: LocalScheduler | None) -> None:
        self._cache = cache
        self._block_tokens = block_tokens
        self._scheduler = scheduler
        self._runs: dict[RunId, SimRun] = {}
        self._by_arrival: dict[int, SimRun] = {}
        self._unseen: dict[int, SimRun] = {}  # that the scheduler has not heard of

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[SimRun]:
        return iter(self._runs.values())

    def get(self, run_id: RunId) -> SimRun | None:
        return self._runs.get(run_id)

    def add(self, run: SimRun) -> None:
        """It waits; `arrival` says since when, also if it has been in the queue before."""
        self._runs[run.run_id] = self._by_arrival[run.arrival] = self._unseen[run.arrival] = run

    def remove(self, run: SimRun) -> None:
        """It waits no longer."""
        del self._runs[run.run_id]
        del self._by_arrival[run.arrival]
        self._unseen.pop(run.arrival, None)
        if self._scheduler is not None:
            self._scheduler.drop((run.arrival,))
        if run.watch is not None:
            self._cache.watches.remove(run.watch)
            run.watch = None

    def in_order(self) -> Iterable[SimRun]:
        """All that wait, best first. They may be removed meanwhile."""
        scheduler = self._scheduler
        if scheduler is None:
            return sorted(self._runs.values(), key=lambda run: run.arrival)
        for run in self._unseen.values():
            self.cached(run)
        self._unseen.clear()
        for watch in self._cache.watches.take_moved():
            scheduler.put(watch.name, self._by_arrival[watch.name].length, watch.node.depth * self._block_tokens)
        self._cache.look()
        return map(self._by_arrival.__getitem__, scheduler.arrange())

    def cached(self, run: SimRun) -> CacheNode:
        """The last node of the cache that a waiting run could use."""
        return self._watch(run).node

    def awaited(self, run: SimRun) -> bytes:
        """The hash of the first block that a waiting run could use, but is not in the cache; empty if there is none."""
        return self._watch(run).awaited

    def _watch(self, run: SimRun) -> Watch:
        if run.watch is None:
            most = cacheable_blocks(run.length, self._block_tokens)
            run.cover(most)
            run.watch = self._cache.watch(run.path, most, run.arrival)
        return run.watch
