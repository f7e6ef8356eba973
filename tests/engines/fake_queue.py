"""SGLang's side of what orders its queue and fills its batches: requests, a cache, and the loop that admits."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from prebled.worker.sglang_gate import PageGate

PAGE = 4
NEXT_ONE, CLOSED = "next one", "closed"
"""As `AddReqResult.CONTINUE` and `AddReqResult.OTHER`."""


@dataclass(eq=False)
class Req:
    """As much of SGLang's Req as the hooks use. `prompt`: a letter for each token."""

    prompt: str
    output_ids: array[int] = field(default_factory=lambda: array("q"))
    extra_key: str | None = None
    cache_salt: str | None = None
    num_matched_prefix_tokens: int = 0
    prefix_len: int = 0
    extend_end: int = 0
    most_prefix: int = 10**6
    steps_to_run: int = 0  # after its prompt
    is_finished: bool = False

    @property
    def origin_input_ids(self) -> array[int]:
        return array("q", map(ord, self.prompt))

    @property
    def seqlen(self) -> int:
        return len(self.prompt) + len(self.output_ids)

    def finished(self) -> bool:
        return self.is_finished

    def _compute_max_prefix_len(self, tokens: int) -> int:
        return min(tokens - 1, self.most_prefix)


@dataclass
class Policy:
    """SchedulePolicy and its cache in one. Names of tenants are not part of what is cached."""

    cached: set[str] = field(default_factory=set)
    matches_itself: bool = False
    enable_priority_scheduling: bool = False
    page_size: int = PAGE
    matched: list[str] = field(default_factory=list)
    changes: int = 0
    disable: bool = False
    kind: str = "full"

    @property
    def tree_cache(self) -> Policy:
        return self

    def compute(self, prompt: str) -> None:
        """Put the full pages of a prompt into the cache."""
        self.changes += 1
        self.cached.update(pages(prompt, 0, len(prompt)))

    def evict(self, beginning: str, but: Iterable[str] = ()) -> None:
        """Forget all that begins so, but for the pages of some prompts."""
        self.changes += 1
        kept = {page for prompt in but for page in pages(prompt, 0, len(prompt))}
        self.cached = {held for held in self.cached if held in kept or not held.startswith(beginning)}

    def holds(self, prompt: str) -> int:
        """So many tokens of a prompt: whole pages, never all."""
        count = 0
        while (count + 1) * PAGE < len(prompt) and prompt[: (count + 1) * PAGE] in self.cached:
            count += 1
        return count * PAGE

    def evictable_size(self) -> int:
        return self.changes

    def protected_size(self) -> int:
        return 0

    def waiting_queue_prefix_matched(self, queue: list[Req]) -> bool:
        return self.matches_itself

    def supports_swa(self) -> bool:
        return self.kind == "swa"

    def supports_mamba(self) -> bool:
        return self.kind == "mamba"


def pages(prompt: str, start: int, end: int) -> list[str]:
    """The full pages between two tokens of a prompt, each with all before it."""
    return [prompt[: page + PAGE] for page in range(start // PAGE * PAGE, end - PAGE + 1, PAGE)]


def match(req: Req, policy: Policy, tokens: array[int]) -> None:
    policy.matched.append(req.prompt)
    req.num_matched_prefix_tokens = min(policy.holds("".join(map(chr, tokens))), req.most_prefix // PAGE * PAGE)


def calc_priority(policy: Policy, queue: list[Req], *args: Any, **options: Any) -> None:
    if policy.matches_itself:
        for req in queue:
            req.num_matched_prefix_tokens = policy.holds(req.prompt)


@dataclass
class Adder:
    """PrefillAdder: so many requests and tokens to a batch, and at least a page of each request."""

    tree_cache: Policy
    tokens: int
    requests: int
    page_size: int = PAGE
    can_run_list: list[Req] = field(default_factory=list)

    def add(self, req: Req) -> str:
        new = req.seqlen - req.prefix_len
        if new > self.tokens:
            new = self.tokens // PAGE * PAGE
        if not new or len(self.can_run_list) == self.requests:
            return CLOSED
        req.extend_end = req.prefix_len + new
        self.tokens -= new
        self.can_run_list.append(req)
        return NEXT_ONE

    def add_chunk(self, req: Req) -> None:
        self.add(req)


class Loop:
    """SGLang's way from one prefill batch to the next, with `gate` at its place and `order` around `calc_priority`.
    With `overlap`, results are there when the next batch has been made. Notes `computed`, the pages of each batch."""

    def __init__(
        self,
        gate: PageGate,
        policy: Policy,
        *,
        tokens: int = 1000,
        requests: int = 1000,
        overlap: bool = False,
        order: Callable[..., None] | None = None,
    ) -> None:
        self.queue: list[Req] = []
        self.chunked: Req | None = None
        self.running: list[Req] = []
        self.in_flight: list[Req] = []
        self.computed: list[list[str]] = []
        self._gate, self._order, self._policy = gate, order, policy
        self._tokens, self._requests, self._overlap = tokens, requests, overlap

    def step(self) -> list[Req]:
        """Make a batch; who is in it."""
        adder = Adder(self._policy, self._tokens, self._requests)
        if self.chunked is not None:
            self._policy.compute(self.chunked.prompt[: self.chunked.extend_end])
            self.chunked.prefix_len = self.chunked.extend_end
        if self._order is not None and self.queue:
            self._order(calc_priority, self._policy, self.queue, None, processed_tokens=0)
        if self.chunked is not None:
            self._gate.around_chunk(Adder.add_chunk, adder, self.chunked)  # type: ignore[arg-type]
        for req in self.queue:
            if not adder.tokens:
                break
            match(req, self._policy, req.origin_input_ids)
            req.prefix_len = req.num_matched_prefix_tokens
            if self._gate.around_one(Adder.add, adder, req) == CLOSED:
                break
        batch = adder.can_run_list
        self.queue = [req for req in self.queue if req not in batch]
        self.chunked = next((req for req in batch if req.extend_end < req.seqlen), None)
        self.computed.append([page for req in batch for page in pages(req.prompt, req.prefix_len, req.extend_end)])
        self._run()
        if self._overlap:
            self._end([req for req in self.in_flight if req not in batch])
            self.in_flight = batch
        else:
            self._end([req for req in batch if req is not self.chunked])
        return batch

    def _run(self) -> None:
        for req in self.running:
            req.steps_to_run -= 1
            req.is_finished = req.steps_to_run <= 0
        self.running = [req for req in self.running if not req.is_finished]

    def _end(self, batch: list[Req]) -> None:
        """The results of those whose prompts are through are there."""
        for req in batch:
            self._policy.compute(req.prompt)
            req.output_ids.append(0)
            req.is_finished = req.steps_to_run <= 0
            if not req.is_finished:
                self.running.append(req)
