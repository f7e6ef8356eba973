"""`prebled explain REQUEST_ID`: why a request was placed where it was, or refused."""

from __future__ import annotations

import argparse

from prebled.client import Client
from prebled.commands.client_options import add_connect
from prebled.commands.output import write_json, write_line, write_table
from prebled.core.decisions import Candidate, Cause, Explanation, Placement, Reject

_CAUSES: dict[Cause, str] = {
    "evicted": "evicted: the worker evicted the first of them after the decision",
    "not_computed": "not computed: another request was still to compute the first of them",
    "never_stored": "never stored: the worker was expected to keep the first of them and has not said so",
    "more": "more: the worker held more than was known",
    "other": "other: the worker had said that it holds the first of them",
}
_COLUMNS = ("WORKER", "", "CACHED", "LOAD MS", "EVICTION MS", "PREFILL MS", "TOTAL MS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Name the arguments."""
    parser.epilog = "The daemon remembers the newest requests, 10,000 of them unless told otherwise."
    parser.add_argument("request_id", metavar="REQUEST_ID", help="as in x-request-id, or a stream's request_id")
    add_connect(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    with Client(args.connect or "") as client:
        explanation = client.explain(args.request_id)
    if args.json:
        write_json(explanation)
    elif explanation.placement is not None:
        _write_placement(explanation, explanation.placement)
    elif explanation.reject is not None:
        _write_reject(explanation, explanation.reject)
    return 0


def _write_placement(explanation: Explanation, placement: Placement) -> None:
    write_line(f"{explanation.request_id}: {placement.mode} on {placement.worker_id}, policy {placement.policy}")
    told = "" if explanation.cached_tokens is None else f"; its engine took {explanation.cached_tokens} from its cache"
    write_line(f"tokens: {placement.matched_tokens} matched, {placement.missed_tokens} missed{told}")
    if explanation.mispredicted_tokens:
        write_line(_mispredicted(explanation))
    if explanation.placements > 1:
        write_line(f"placed {explanation.placements} times; this is the newest")
    for text in placement.adjusted:
        write_line(f"adjusted: {text}")
    write_line()
    # Numbers of one width each, so that their points stand in a line.
    header = tuple(f"{name:>11}" if name.endswith("MS") else name for name in _COLUMNS)
    write_table(header, [_row(candidate, placement) for candidate in placement.candidates])


def _mispredicted(explanation: Explanation) -> str:
    """The difference of matched and cached tokens, and its cause."""
    tokens = explanation.mispredicted_tokens
    cause = "the cause is known when the request has ended"
    if explanation.mispredicted is not None:
        cause = _CAUSES[explanation.mispredicted]
    return f"mispredicted: {abs(tokens)} tokens {'fewer' if tokens > 0 else 'more'} than matched; {cause}"


def _row(candidate: Candidate, placement: Placement) -> tuple[object, ...]:
    seconds = (candidate.load_s, candidate.eviction_s, candidate.prefill_s, candidate.total_s)
    mark = "<-" if candidate.worker_id == placement.worker_id else ""
    return (candidate.worker_id, mark, candidate.cached_tokens, *(f"{1000 * value:11.3f}" for value in seconds))


def _write_reject(explanation: Explanation, reject: Reject) -> None:
    write_line(f"{explanation.request_id}: refused, {reject.code}")
    write_line(reject.message)
    if explanation.placements:
        write_line(f"placed {explanation.placements} times before")
    if reject.retry_after_s is not None:
        write_line(f"the client was told to try again after {reject.retry_after_s:g} s")
