"""The five workloads of Preble (ICLR'25, Table 1) as shapes: what their prompts share and how long the parts are.

A prompt is a system part, the same for all; a key part, the same for a group of requests (a tool list, a problem, a
video, a document); and a part of its own. In `embodied` the groups are episodes: each step's prompt is the one before,
its answer, and what was observed.

Definitions, checked against the published columns: "shared" is the share of a prompt that an infinite cache holds when
it comes (the first of a group finds only the system part); a prompt's "key portion" is the deepest node on its path, in
the radix tree of all prompts, with more tokens than all before it together; requests "share" it that have it on their
path. In `programming` the system part is the longest of most prompts and one node for all of them, so that "requests
sharing a key portion" has the published mean only because some problems are longer than it; its standard deviation
grows with the number of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prebled.bench.generators_draws import Spread, draw_lengths, group_sizes, riffle, zipf_sizes
from prebled.bench.trace_recording import Ints, Recording, recording_of
from prebled.errors import SettingsError

BLOCK_TOKENS = 16
"""Of the generated traces: the finest that anyone replays with."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of one kind: their share of the requests, requests of each, tokens of the key part."""

    share: float
    requests: Spread
    key_tokens: Spread


@dataclass(frozen=True, slots=True)
class Published:
    """A row of Table 1, (mean, standard deviation) each: tokens, tokens, shares of the prompt, requests."""

    prompt_tokens: tuple[float, float]
    output_tokens: tuple[float, float]
    shared: tuple[float, float]
    key_portion: tuple[float, float]
    requests_per_key: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A workload whose prompts are system part, key part and own part. The spread of key tokens is over requests."""

    published: Published
    system_tokens: int
    groups: tuple[Groups, ...]
    own_tokens: Spread
    output_tokens: Spread

    def record(
        self, requests: int, chance: np.random.Generator, zipf: float | None = None, groups: int | None = None
    ) -> Recording:
        """`requests` of them in an order drawn by chance, without times. `zipf`: exponent of the groups' popularity
        instead of their spread; `groups`: how many."""
        sizes, keys = self._groups(requests, chance, zipf, groups)
        group = np.repeat(np.arange(sizes.size), sizes)
        own = draw_lengths(chance, self.own_tokens, np.ones(requests, np.int64))
        output = draw_lengths(chance, self.output_tokens, np.ones(requests, np.int64))
        order = chance.permutation(requests)
        group, own, output = group[order], own[order], output[order]
        prompt = self.system_tokens + keys[group] + own
        system_blocks = self.system_tokens // BLOCK_TOKENS
        key_blocks = (self.system_tokens + keys) // BLOCK_TOKENS - system_blocks
        own_blocks = prompt // BLOCK_TOKENS - system_blocks - key_blocks[group]
        key_starts = system_blocks + np.cumsum(key_blocks) - key_blocks
        own_starts = system_blocks + int(key_blocks.sum()) + np.cumsum(own_blocks) - own_blocks
        starts = np.stack((np.zeros(requests, np.int64), key_starts[group], own_starts), axis=1)
        counts = np.stack((np.full(requests, system_blocks), key_blocks[group], own_blocks), axis=1)
        return recording_of(prompt, output, [f"g{number}" for number in group.tolist()], BLOCK_TOKENS, starts, counts)

    def _groups(
        self, requests: int, chance: np.random.Generator, zipf: float | None, groups: int | None
    ) -> tuple[Ints, Ints]:
        """Requests and key tokens of each group."""
        rare = [round(requests * kind.share) for kind in self.groups[1:]]
        kinds = [(kind, count) for kind, count in zip(self.groups, [requests - sum(rare), *rare], strict=True) if count]
        usual = sum(count / kind.requests.mean for kind, count in kinds)
        sizes, keys = [], []
        for kind, count in kinds:
            spread = kind.requests.scaled(usual / groups if groups else 1.0)
            if zipf is None:
                of_kind = group_sizes(chance, spread, count)
            else:
                of_kind = zipf_sizes(chance, max(round(count / spread.mean), 1), zipf, count)
            sizes.append(of_kind)
            keys.append(draw_lengths(chance, kind.key_tokens, of_kind))
        return np.concatenate(sizes), np.concatenate(keys)


@dataclass(frozen=True, slots=True)
class Episodes:
    """A workload of episodes that share nothing with each other and grow by answer and observation at each step."""

    published: Published
    steps: Spread
    start_tokens: Spread
    output_tokens: Spread
    observed_tokens: Spread

    def record(
        self, requests: int, chance: np.random.Generator, zipf: float | None = None, groups: int | None = None
    ) -> Recording:
        """The steps of all episodes in an order drawn by chance that keeps each episode's own, without times. `groups`:
        how many episodes. Raises SettingsError if there is a `zipf`."""
        if zipf is not None:
            raise SettingsError(f"zipf is {zipf}: episodes are not picked by popularity", param="zipf")
        spread = self.steps.scaled(requests / self.steps.mean / groups if groups else 1.0)
        steps = group_sizes(chance, spread, requests)
        ones = np.ones(requests, np.int64)
        output = draw_lengths(chance, self.output_tokens, ones)
        growth = output + draw_lengths(chance, self.observed_tokens, ones)
        # Tokens that a step's episode has grown by before it.
        grown = np.cumsum(growth) - growth
        firsts = np.cumsum(steps) - steps
        grown -= np.repeat(grown[firsts], steps)
        start_mean = self.published.prompt_tokens[0] - float(grown.mean())
        start = draw_lengths(chance, self.start_tokens, steps, max(start_mean, 1.0))
        prompt = np.repeat(start, steps) + grown
        blocks = prompt // BLOCK_TOKENS
        longest = blocks[firsts + steps - 1]
        starts = np.repeat(np.cumsum(longest) - longest, steps)
        order = riffle(chance, steps)
        sessions = [f"e{number}" for number in np.repeat(np.arange(steps.size), steps)[order].tolist()]
        return recording_of(
            prompt[order], output[order], sessions, BLOCK_TOKENS, starts[order][:, None], blocks[order][:, None]
        )


WORKLOADS: dict[str, Grouped | Episodes] = {
    "toolbench": Grouped(
        Published((1835, 742), (43, 16), (0.85, 0.13), (0.76, 0.16), (39, 64)),
        system_tokens=180,
        groups=(Groups(1.0, Spread(39, 64), Spread(1405, 740, 300, 3600)),),
        own_tokens=Spread(250, 60, 60, 440),
        output_tokens=Spread(43, 16, 1, 512),
    ),
    "embodied": Episodes(
        Published((2285, 471), (16, 13), (0.97, 0.14), (0.76, 0.12), (48, 8)),
        steps=Spread(48, 8),
        start_tokens=Spread(1720, 330, 900, 4000),
        output_tokens=Spread(16, 13, 1, 64),
        observed_tokens=Spread(8, 4, 1, 32),
    ),
    "programming": Grouped(
        Published((3871, 1656), (190, 343), (0.97, 0.074), (0.78, 0.13), (126, 2157)),
        system_tokens=2704,
        groups=(
            Groups(0.92, Spread(24.6, 15), Spread(730, 550, 60, 2600)),
            Groups(0.08, Spread(9.6, 6), Spread(5900, 2400, 2760, 12000)),
        ),
        own_tokens=Spread(20, 4, 16, 40),
        output_tokens=Spread(190, 343, 1, 4096),
    ),
    "videoqa": Grouped(
        Published((9865, 5976), (4, 1.5), (0.88, 0.32), (0.99, 0.002), (8.6, 2)),
        system_tokens=15,
        groups=(Groups(1.0, Spread(8.6, 2), Spread(9805, 5976, 1000, 46000)),),
        own_tokens=Spread(45, 10, 20, 120),
        output_tokens=Spread(4, 1.5, 1, 12),
    ),
    "loogle": Grouped(
        Published((23474, 6105), (16, 9.9), (0.91, 0.24), (0.94, 0.15), (18, 8.6)),
        system_tokens=13,
        groups=(Groups(1.0, Spread(18, 8.6), Spread(22861, 6105, 6000, 31600)),),
        own_tokens=Spread(600, 250, 100, 1100),
        output_tokens=Spread(16, 9.9, 1, 64),
    ),
}
