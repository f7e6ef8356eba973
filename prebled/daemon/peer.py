"""The workers that the fabric knows: who each is, when it was last heard, what is on its way to it.

State only: the fabric does the sending, and decides what a silence or a failed send means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prebled.core.types import Epoch, RunId, WorkerId
from prebled.daemon.kv_stream import KvStream
from prebled.daemon.sequencer import Sequencer
from prebled.daemon.stream_counts import StreamCounts
from prebled.messages import PROTOCOL_VERSION, Beat, Frame, Hello, Submit, Tokens
from prebled.settings import FabricSettings

MOST_WORKERS = 1024
"""Workers known at a time. Full: further ones are refused."""

INTRODUCE_EVERY_S = 1.0
"""A peer that does not say Hello although asked to is asked again after so long."""

_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Peer:
    """A worker that said Hello. `identity` is where the ROUTER finds it; `sequencer` is there from Ready on,
    `kv` before that: what the cache holds is told first."""

    def __init__(self, hello: Hello, identity: bytes, kv: KvStream, now: float) -> None:
        self.worker_id: WorkerId = hello.worker_id
        self.epoch: Epoch = hello.epoch
        self.pid = hello.pid
        self.identity = identity
        self.heard_at = now
        self.kv = kv
        self.sequencer: Sequencer | None = None
        self.detail: str | None = None  # what a loading worker told last
        self.gone = ""  # why nothing more is sent; its loss is told on the loop's next turn
        self.unsent: list[Submit] = []
        self.unsent_since = 0.0
        self._idle_since: float | None = None
        self._idle_runs: frozenset[RunId] = frozenset()

    @property
    def live_runs(self) -> frozenset[RunId]:
        """Runs sent or about to be sent there that have not ended."""
        return self.sequencer.live_runs if self.sequencer else frozenset()

    def start_stream(self, next_seq: int, settings: FabricSettings, counts: StreamCounts) -> None:
        """The worker is ready, and this is its first frame for us."""
        self.sequencer = Sequencer(
            self.epoch,
            next_seq,
            self.kv,
            replay_after_s=settings.replay_after_s,
            give_up_s=settings.lost_after_s,
            counts=counts,
        )

    def queue(self, submit: Submit, now: float) -> None:
        """Put a run into the batch that is being made up. Only after Ready."""
        assert self.sequencer is not None
        self.sequencer.expect(submit.run_id)
        if not self.unsent:
            self.unsent_since = now
        self.unsent.append(submit)

    def take_batch(self) -> tuple[Submit, ...]:
        """The batch, which is empty afterwards."""
        batch = tuple(self.unsent)
        self.unsent.clear()
        return batch

    def saw_frame(self, frame: Frame, now: float) -> None:
        """The worker is alive, and at work if tokens came."""
        self.heard_at = now
        if isinstance(frame, Tokens):
            self._idle_since = None

    def unknown_to_worker(self, beat: Beat, now: float, patience_s: float) -> frozenset[RunId]:
        """Runs that the worker does not know of: for `patience_s` it has said that it has nothing to do, and nothing of
        them came. So it is when a broken connection swallowed a batch or an end and neither side noticed."""
        if beat.queued or beat.running or self.sequencer is None or self.sequencer.has_gap or not self.live_runs:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._idle_runs = now, self.live_runs
        elif now - self._idle_since >= patience_s:
            self._idle_since = None
            return self._idle_runs & self.live_runs
        return frozenset()


class Introductions:
    """Who was asked to say Hello, and when. Full: who was asked first is forgotten."""

    def __init__(self) -> None:
        self._asked_at: dict[bytes, float] = {}

    def are_due(self, identity: bytes, now: float) -> bool:
        """Whether this one is to be asked now; then it counts as asked."""
        if now - self._asked_at.get(identity, -INTRODUCE_EVERY_S) < INTRODUCE_EVERY_S:
            return False
        if len(self._asked_at) >= MOST_WORKERS:
            del self._asked_at[next(iter(self._asked_at))]
        self._asked_at[identity] = now
        return True

    def forget(self, identity: bytes) -> None:
        """It has said Hello."""
        self._asked_at.pop(identity, None)


class PeerTable:
    """All peers, found by worker, by identity and by epoch; and the runs of lost ones, should they come back."""

    def __init__(self) -> None:
        self._by_id: dict[WorkerId, Peer] = {}
        self._by_identity: dict[bytes, Peer] = {}
        self._by_epoch: dict[Epoch, Peer] = {}
        self._orphans: dict[WorkerId, tuple[Epoch, frozenset[RunId]]] = {}

    def __iter__(self) -> Iterator[Peer]:
        """A snapshot: peers may come and go meanwhile."""
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, worker_id: WorkerId) -> Peer | None:
        """The peer of this worker, unless it is gone."""
        peer = self._by_id.get(worker_id)
        return peer if peer is not None and not peer.gone else None

    def at(self, identity: bytes) -> Peer | None:
        """The peer that sends under this identity, unless it is gone."""
        peer = self._by_identity.get(identity)
        return peer if peer is not None and not peer.gone else None

    def of_epoch(self, epoch: Epoch) -> Peer | None:
        """The peer whose frames carry this epoch, unless it is gone."""
        peer = self._by_epoch.get(epoch)
        return peer if peer is not None and not peer.gone else None

    def holds(self, peer: Peer) -> bool:
        """Whether this very peer has not been removed yet."""
        return self._by_id.get(peer.worker_id) is peer

    def replaced_by(self, hello: Hello) -> Peer | None:
        """The peer that goes when this worker is let in: gone already, of an older start, or one that had lost us."""
        old = self._by_id.get(hello.worker_id)
        if old is None or (old.epoch == hello.epoch and old.sequencer is None and not old.gone):
            return None
        return old

    def why_not(self, hello: Hello) -> str:
        """Why a worker that says this is refused; empty if it is not.

        Of two that claim one id the newer start stays: after a restart the older one is dead, only not missed yet; and
        where both live, the older one is told so when it speaks next.
        """
        if hello.protocol != PROTOCOL_VERSION:
            return f"it speaks version {hello.protocol} of the fabric's protocol, the daemon version {PROTOCOL_VERSION}"
        if not _WORKER_ID.fullmatch(hello.worker_id):
            return f"worker id {hello.worker_id!r}: letters, digits, '.', '_' and '-', at most 64"
        old = self._by_id.get(hello.worker_id)
        if old is not None and hello.epoch < old.epoch and not old.gone:
            return f"worker {hello.worker_id!r} runs already with a newer start, as pid {old.pid}"
        namesake = self._by_epoch.get(hello.epoch)
        if namesake is not None and namesake is not old:
            return f"epoch {hello.epoch} is that of worker {namesake.worker_id!r}; start again"
        if old is None and len(self._by_id) >= MOST_WORKERS:
            return f"there are {MOST_WORKERS} workers already"
        return ""

    def add(self, peer: Peer) -> None:
        """Let a worker in, or let it move to another identity."""
        known = self._by_id.get(peer.worker_id)
        if known is peer:
            self._by_identity = {name: other for name, other in self._by_identity.items() if other is not peer}
        self._by_id[peer.worker_id] = self._by_identity[peer.identity] = self._by_epoch[peer.epoch] = peer

    def remove(self, peer: Peer) -> None:
        """Forget a worker but for its live runs."""
        del self._by_id[peer.worker_id], self._by_epoch[peer.epoch]
        if self._by_identity.get(peer.identity) is peer:
            del self._by_identity[peer.identity]
        self._orphans.pop(peer.worker_id, None)
        if len(self._orphans) >= MOST_WORKERS:
            del self._orphans[next(iter(self._orphans))]
        self._orphans[peer.worker_id] = (peer.epoch, peer.live_runs)

    def take_orphans(self, peer: Peer) -> tuple[RunId, ...]:
        """Runs that this life of the worker had when it was lost, and may still be at."""
        epoch, runs = self._orphans.pop(peer.worker_id, (None, frozenset()))
        return tuple(sorted(runs)) if epoch == peer.epoch else ()
