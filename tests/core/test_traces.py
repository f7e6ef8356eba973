"""Golden traces: recorded events give the recorded decisions, to the last digit."""

from __future__ import annotations

import pytest
from trace_scripts import FOLDER, SCRIPTS, scheduler_for

from prebled.core.trace import decode_step, encode_step, record


@pytest.mark.parametrize("name", SCRIPTS)
def test_replaying_gives_the_recorded_decisions(name: str) -> None:
    scheduler = scheduler_for(name)
    lines = (FOLDER / f"{name}.jsonl").read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        step = decode_step(line)
        decisions = scheduler.handle(step.event, step.now)
        assert decisions == step.decisions, f"{name}.jsonl, line {number}: {step.event}"
        scheduler.check_invariants()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_files_hold_what_the_scripts_say(name: str) -> None:
    recorded = (FOLDER / f"{name}.jsonl").read_bytes().splitlines()
    assert [encode_step(step) for step in record(scheduler_for(name), SCRIPTS[name]())] == recorded


def test_there_is_no_file_without_a_script() -> None:
    assert {path.name for path in FOLDER.glob("*.jsonl")} == {f"{name}.jsonl" for name in SCRIPTS}
