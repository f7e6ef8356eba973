"""Random sequences of events: all sums recomputed after each, nothing raised, the same decisions again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_scripts import BLOCK, scheduler, tokens

from prebled.core.blocks import HASH_BYTES, hash_path, namespace_seed
from prebled.core.decisions import Place
from prebled.core.events import (
    AnyEvent,
    FirstToken,
    KvReported,
    KvSnapshotTaken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestLost,
    SendFailed,
    Tick,
    TokensMade,
    WorkerDraining,
    WorkerLoad,
    WorkerLost,
    WorkerReady,
)
from prebled.core.policies import POLICIES
from prebled.core.types import Epoch, RequestId, WorkerId
from prebled.messages import Capacity, KvCleared, KvRemoved, KvStored

names = st.sampled_from(["a", "b", "c", "d", "e"]).map(RequestId)
workers = st.sampled_from(["w0", "w1"]).map(WorkerId)
prompts = st.lists(st.tuples(st.integers(1, 2), st.sampled_from([30, 64, 200])), min_size=1, max_size=3)
tiny = Capacity("m", "sim", "sim", BLOCK, 640, 600, 640, 1000, 8)
paths = prompts.map(lambda prompt: hash_path(tokens(*prompt), BLOCK, namespace_seed("", "", "")))
runs = st.builds(
    lambda path, start: KvStored(path[:start][-HASH_BYTES:], path[start:]), paths, st.sampled_from([0, 8, 16])
)
changes = st.one_of(runs, st.builds(lambda path: KvRemoved(path[-HASH_BYTES:]), paths), st.just(KvCleared()))
events = st.one_of(
    st.builds(lambda n, p, c: RequestArrived(n, tokens(*p), 5, continued=c), names, prompts, st.booleans()),
    st.builds(SendFailed, names, workers),
    st.builds(FirstToken, names, st.just(0)),
    st.builds(TokensMade, names, st.integers(1, 9)),
    st.builds(RequestFinished, names, st.integers(1, 9), st.booleans()),
    st.builds(RequestCancelled, names),
    st.builds(RequestLost, names),
    st.builds(WorkerReady, workers, st.sampled_from([Epoch(1), Epoch(2)]), st.just(tiny)),
    st.builds(WorkerLoad, workers, st.just(0), st.just(1), st.just(10)),
    st.builds(KvReported, workers, st.lists(changes, max_size=4).map(tuple)),
    st.builds(KvSnapshotTaken, workers, st.lists(runs, max_size=3).map(tuple)),
    st.builds(WorkerDraining, workers),
    st.builds(WorkerLost, workers),
    st.just(Tick()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(events, st.floats(-1, 200)), max_size=50), st.sampled_from(sorted(POLICIES)))
def test_any_sequence_keeps_all_sums_and_never_raises(script: list[tuple[AnyEvent, float]], policy: str) -> None:
    subject, again = scheduler(policy, max_waiting=3), scheduler(policy, max_waiting=3)
    now = 0.0
    for event, step in script:
        now += step
        decisions = subject.handle(event, now)
        assert decisions == again.handle(event, now)  # the same events at the same times, the same decisions
        subject.check_invariants()
        for decision in decisions:
            if isinstance(decision, Place):
                assert subject.decision(decision.request_id) == decision.placement
