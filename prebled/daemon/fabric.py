"""The daemon's side of the fabric: greets workers, sends them batches, and passes on what they say in order.

The rule kept here: every run that `submit_nowait` took ends by exactly one of `run_done`, `run_failed`, `run_lost` and
the `worker_lost` of its worker; its chunks come before that, in order, none twice, none missing. It knows nothing of
requests, prompts or placement.

Each bound and what happens when it is full stands at its constant: messages on the way (fabric_sockets), frames held
behind a missing one (sequencer), workers (peer), runs in a batch (settings: the batch is sent).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import ParamSpec

import structlog

from prebled.core.types import RunId, WorkerId
from prebled.daemon.fabric_reports import FabricCounts, FabricListener, FabricStatistics
from prebled.daemon.fabric_sockets import FabricSockets
from prebled.daemon.kv_stream import KvHeld, KvStream
from prebled.daemon.peer import Introductions, Peer, PeerTable
from prebled.daemon.sequencer import Output, RunsLost, StreamBroken
from prebled.daemon.stream_counts import StreamCounts
from prebled.errors import SettingsError
from prebled.messages import (
    Abort,
    Batch,
    Beat,
    Chunk,
    Done,
    Drain,
    Failed,
    Frame,
    FromWorker,
    GetSnapshot,
    Hello,
    Introduce,
    KvChanged,
    KvSnapshot,
    Leaving,
    Pulse,
    Ready,
    Refused,
    Replay,
    Replayed,
    Stop,
    Submit,
    ToWorker,
    Welcome,
)
from prebled.settings import FabricSettings

log = structlog.get_logger()
P = ParamSpec("P")

LEAST_STEP_S = 0.005
"""Time is kept at this pace at most."""


class Fabric:
    """`address`: `unix:PATH` or `tcp:HOST:PORT`. `daemon_epoch`: 8 bytes, new for each life of the daemon. `model`: the
    name that block hashes start from. Life: `start`, then `run` as a task while it is in use, then `close`."""

    def __init__(
        self,
        address: str,
        daemon_epoch: bytes,
        listener: FabricListener,
        settings: FabricSettings,
        *,
        block_tokens: int,
        model: str,
    ) -> None:
        if len(daemon_epoch) != 8:
            raise SettingsError(f"daemon epoch {daemon_epoch!r}: not 8 bytes")
        self._daemon_epoch = daemon_epoch
        self._listener = listener
        self._settings = settings
        self._block_tokens = block_tokens
        self._model = model
        self._peers = PeerTable()
        self._introductions = Introductions()
        self._unsent: dict[WorkerId, Peer] = {}  # with a batch in the making
        self._flush_soon: asyncio.Handle | None = None
        self._counts = FabricCounts()
        self._stream_counts = StreamCounts()
        self._callback_errors = 0
        self._sockets = FabricSockets(address, daemon_epoch, self._take_message, self._take_frame)

    # --- life ---

    def start(self) -> None:
        """Bind. Needs the running loop; raises SettingsError where the address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._sockets.open()
        log.info("fabric open", daemon_epoch=self._daemon_epoch.hex())

    async def run(self) -> None:
        """Keep time: pulses, silences, replays. Until cancelled."""
        step_s = max(min(self._settings.beat_s, self._settings.replay_after_s) / 2, LEAST_STEP_S)
        last = pulse_at = self._loop.time()
        while True:
            await asyncio.sleep(step_s)
            now = self._loop.time()
            self._excuse(now - last - step_s)
            last = now
            for peer in self._peers:
                if now >= pulse_at:
                    self._send(peer, Pulse())
                self._guard(self._keep_time, peer, now)
            if now >= pulse_at:
                pulse_at = now + self._settings.beat_s

    def close(self) -> None:
        """Close; what was not sent yet is dropped and nothing more is told. Safe to call twice, or before `start`."""
        if self._flush_soon is not None:
            self._flush_soon.cancel()
        self._sockets.close()
        self._peers = PeerTable()

    # --- towards workers ---

    def submit_nowait(self, worker_id: WorkerId, submit: Submit) -> bool:
        """Send a run with the others of this turn. False: the worker is not there or not ready, nothing was done."""
        peer = self._peers.get(worker_id)
        if peer is None or peer.sequencer is None:
            return False
        now = self._loop.time()
        peer.queue(submit, now)
        self._unsent[worker_id] = peer
        if len(peer.unsent) >= self._settings.batch_count or now - peer.unsent_since >= self._settings.batch_s:
            self._flush(peer)
        elif self._flush_soon is None:
            self._flush_soon = self._loop.call_soon(self._flush_all)
        return True

    def abort_nowait(self, worker_id: WorkerId, run_ids: Sequence[RunId]) -> None:
        """End these runs; each still ends by `run_done` or `run_failed`. Ignored if the worker is not there."""
        self._send_to(worker_id, Abort(tuple(run_ids)))

    def ask_snapshot(self, worker_id: WorkerId) -> None:
        """What the worker's cache holds is to be told anew, by `kv_snapshot`. Ignored if the worker is not ready."""
        peer = self._peers.get(worker_id)
        if peer is not None and peer.sequencer is not None:
            self._pass_on(peer, peer.kv.want(self._loop.time()))

    def drain_worker(self, worker_id: WorkerId) -> bool:
        """Tell a worker to take nothing new. False: it is not there."""
        return self._send_to(worker_id, Drain())

    def stop_worker(self, worker_id: WorkerId) -> bool:
        """Tell a worker to exit. False: it is not there."""
        return self._send_to(worker_id, Stop())

    def refuse_worker(self, worker_id: WorkerId, reason: str) -> bool:
        """Send a worker away for good (it exits), for what only the listener can judge. False: it is not there."""
        peer = self._peers.get(worker_id)
        if peer is None:
            return False
        self._refuse(peer.identity, worker_id, reason)
        self._give_up(peer, f"refused: {reason}")
        return True

    def forget_worker(self, worker_id: WorkerId, reason: str) -> None:
        """The worker's process is known to be dead: `worker_lost` follows without waiting for its silence."""
        peer = self._peers.get(worker_id)
        if peer is not None:
            self._give_up(peer, reason)

    def statistics(self) -> FabricStatistics:
        """What happened so far."""
        peers = list(self._peers)
        stream = dataclasses.asdict(self._stream_counts)
        stream["bad_frames"] += self._sockets.bad_frames
        return FabricStatistics(
            workers=len(peers),
            ready_workers=sum(peer.sequencer is not None for peer in peers),
            live_runs=sum(len(peer.live_runs) for peer in peers),
            unreachable=self._sockets.unreachable,
            bad_messages=self._sockets.bad_messages,
            callback_errors=self._callback_errors + self._sockets.callback_errors,
            **dataclasses.asdict(self._counts),
            **stream,
        )

    # --- sending ---

    def _send_to(self, worker_id: WorkerId, message: ToWorker) -> bool:
        peer = self._peers.get(worker_id)
        if peer is None:
            return False
        self._flush(peer)  # what was asked for first goes first
        return self._send(peer, message)

    def _send(self, peer: Peer, message: ToWorker) -> bool:
        """Send, or give the worker up: a message that it does not get would leave the two sides at odds."""
        if peer.gone:
            return False
        trouble = self._sockets.send(peer.identity, message)
        if trouble:
            self._give_up(peer, trouble)
        return not trouble

    def _flush_all(self) -> None:
        self._flush_soon = None
        for peer in list(self._unsent.values()):
            self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        self._unsent.pop(peer.worker_id, None)
        batch = peer.take_batch()
        if batch and self._send(peer, Batch(batch)):
            self._counts.batches += 1
            self._counts.submits += len(batch)

    # --- receiving ---

    def _take_message(self, identity: bytes, message: FromWorker) -> None:
        if isinstance(message, Hello):
            self._greet(identity, message)
            return
        peer = self._peers.at(identity)
        if peer is None or message.epoch != peer.epoch:
            self._counts.stale_messages += 1
            if peer is None and not isinstance(message, Leaving):
                self._introduce(identity)
            return
        now = peer.heard_at = self._loop.time()
        match message:
            case Beat():
                self._take_beat(peer, message, now)
            case Ready():
                self._take_ready(peer, message, now)
            case KvSnapshot():
                self._pass_on(peer, peer.kv.take_snapshot(message, now))
            case Leaving(reason=reason):
                self._lose(peer, f"it leaves: {reason}")
            case Done() | Failed() if peer.sequencer is not None:
                self._pass_on(peer, peer.sequencer.take_end(message, now))
            case Replayed() if peer.sequencer is not None:
                self._pass_on(peer, peer.sequencer.take_replayed(message, now))
            case _:
                self._counts.stale_messages += 1

    def _take_frame(self, frame: Frame) -> None:
        peer = self._peers.of_epoch(frame.epoch)
        if peer is None or peer.sequencer is None:
            self._stream_counts.stale_frames += 1
            return
        now = self._loop.time()
        peer.saw_frame(frame, now)
        self._pass_on(peer, peer.sequencer.take_frame(frame, now))

    def _pass_on(self, peer: Peer, outputs: Sequence[Output]) -> None:
        """Tell what the sequencer brought. One failing call must not cost the others their tokens."""
        rest = iter(outputs)
        while True:
            try:
                for output in rest:
                    if type(output) is Chunk:  # by far the most
                        self._listener.run_chunk(peer.worker_id, output)
                    else:
                        self._pass_on_rare(peer, output)
                return
            except Exception:
                self._callback_errors += 1
                log.exception("the listener failed", worker=peer.worker_id)

    def _pass_on_rare(self, peer: Peer, output: Output) -> None:
        match output:
            case Done():
                self._listener.run_done(peer.worker_id, output)
            case Failed():
                self._listener.run_failed(peer.worker_id, output)
            case KvChanged(changes=changes):
                self._listener.kv_changed(peer.worker_id, changes)
            case KvHeld(runs):
                self._listener.kv_snapshot(peer.worker_id, runs)
            case Replay() | GetSnapshot():
                self._send(peer, output)
            case RunsLost(run_ids, first_seq, last_seq):
                self._lose_runs(peer, run_ids, f"frames {first_seq} to {last_seq} cannot be had any more")
            case StreamBroken(reason):
                self._lose(peer, reason)

    def _take_beat(self, peer: Peer, beat: Beat, now: float) -> None:
        if peer.sequencer is None:
            if beat.detail != peer.detail:
                peer.detail = beat.detail
                self._listener.worker_loading(peer.worker_id, beat.detail)
            return
        peer.sequencer.take_last_seq(beat.last_seq, now)
        unknown = peer.unknown_to_worker(beat, now, self._settings.lost_after_s)
        if unknown:
            peer.sequencer.drop(unknown)
            self._lose_runs(peer, tuple(sorted(unknown)), "the worker does not know of them")
        self._listener.worker_beat(peer.worker_id, beat)

    # --- greeting and parting ---

    def _greet(self, identity: bytes, hello: Hello) -> None:
        trouble = self._peers.why_not(hello)
        if trouble:
            self._refuse(identity, hello.worker_id, trouble)
            return
        old = self._peers.replaced_by(hello)
        if old is not None:
            # A worker that served and greets again had lost us: what was on the way is lost with its connection.
            back = "it lost its connection and came back" if old.epoch == hello.epoch else "a newer start replaces it"
            self._lose(old, old.gone or back)
        peer = self._peers.get(hello.worker_id)
        if peer is None:
            kv = KvStream(patience_s=self._settings.lost_after_s, counts=self._stream_counts)
            peer = Peer(hello, identity, kv, self._loop.time())
            self._peers.add(peer)
            log.info("worker known", worker=peer.worker_id, pid=peer.pid, engine=hello.engine, epoch=peer.epoch)
            self._listener.worker_known(peer.worker_id, peer.epoch, peer.pid, hello.engine)
        else:
            peer.identity, peer.heard_at = identity, self._loop.time()
            self._peers.add(peer)
        self._introductions.forget(identity)
        self._send(peer, Welcome(self._daemon_epoch, self._model))
        orphans = self._peers.take_orphans(peer)
        if orphans:
            self._send(peer, Abort(orphans))  # they went on elsewhere

    def _take_ready(self, peer: Peer, ready: Ready, now: float) -> None:
        if peer.sequencer is not None:
            self._counts.stale_messages += 1  # the answer to a second Welcome; the first counts
            return
        theirs, ours = ready.capacity.block_tokens, self._block_tokens
        if theirs != ours:
            trouble = f"its blocks have {theirs} tokens, the daemon's {ours}"
            self._refuse(peer.identity, peer.worker_id, trouble)
            self._lose(peer, f"refused: {trouble}")
            return
        peer.start_stream(ready.next_seq, self._settings, self._stream_counts)
        self._listener.worker_ready(peer.worker_id, peer.epoch, ready.capacity)
        if not peer.gone:  # refused by the listener
            self._pass_on(peer, peer.kv.open(ready.next_seq, now))

    def _introduce(self, identity: bytes) -> None:
        if self._introductions.are_due(identity, self._loop.time()):
            self._counts.introduces += 1
            self._sockets.send(identity, Introduce())

    def _refuse(self, identity: bytes, worker_id: WorkerId, reason: str) -> None:
        self._counts.refused += 1
        log.error("worker refused", worker=worker_id, reason=reason)
        self._sockets.send(identity, Refused(reason))

    def _lose_runs(self, peer: Peer, run_ids: tuple[RunId, ...], reason: str) -> None:
        log.warning("runs lost", worker=peer.worker_id, runs=len(run_ids), reason=reason)
        self._counts.runs_lost += len(run_ids)
        self._send_to(peer.worker_id, Abort(run_ids))
        self._listener.run_lost(peer.worker_id, run_ids)

    def _give_up(self, peer: Peer, reason: str) -> None:
        """Send nothing more to this worker; the listener is told on the loop's next turn."""
        if not peer.gone:
            peer.gone = reason
            self._loop.call_soon(self._guard, self._lose, peer, reason)

    def _lose(self, peer: Peer, reason: str) -> None:
        if not self._peers.holds(peer):
            return  # told already
        peer.gone = reason
        self._peers.remove(peer)
        self._unsent.pop(peer.worker_id, None)
        self._counts.workers_lost += 1
        self._listener.worker_lost(peer.worker_id, reason)

    # --- time ---

    def _excuse(self, late_s: float) -> None:
        """Our own standstill is no worker's silence: what they sent meanwhile has not been read yet."""
        if late_s > self._settings.beat_s:
            log.warning("the event loop stood still", seconds=round(late_s, 3))
            for peer in self._peers:
                peer.heard_at += late_s

    def _keep_time(self, peer: Peer, now: float) -> None:
        silent_s = now - peer.heard_at
        if silent_s > self._settings.lost_after_s:
            self._lose(peer, f"silent for {silent_s:.1f} s")
        elif peer.sequencer is not None and not peer.gone:
            self._pass_on(peer, peer.sequencer.tick(now))

    def _guard(self, act: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            act(*args, **kwargs)
        except Exception:
            self._callback_errors += 1
            log.exception("the listener failed")
