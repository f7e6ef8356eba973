"""Generated traces: the statistics of the paper's Table 1, popularity, arrivals, mixes, and how they are named."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest

from prebled.bench.generators import Workload, parse_workload, record
from prebled.bench.generators_arrivals import azure, poisson
from prebled.bench.generators_draws import Spread, apportion, draw_lengths, group_sizes, zipf_sizes
from prebled.bench.generators_shapes import BLOCK_TOKENS, WORKLOADS
from prebled.bench.trace import Trace, read_trace
from prebled.bench.trace_blocks import continued_by
from prebled.bench.trace_chains import broken_chain
from prebled.bench.trace_stats import measure_trace
from prebled.errors import SettingsError


def generate(source: str, seed: int = 0) -> Trace:
    return read_trace(f"workload:{source}", block_tokens=BLOCK_TOKENS, seed=seed)


class TestTable1:
    """Counted from the finished trace, by the published definitions, not taken from how it was made."""

    @pytest.mark.parametrize("name", WORKLOADS)
    @pytest.mark.parametrize(("requests", "seed"), [(1500, 0), (1800, 1), (2500, 2)])
    def test_means_are_within_a_tenth_and_deviations_near(self, name: str, requests: int, seed: int) -> None:
        stats = measure_trace(generate(f"{name}?requests={requests}", seed))
        published = WORKLOADS[name].published
        assert stats.requests == requests
        assert stats.prompt_tokens.mean == pytest.approx(published.prompt_tokens[0], rel=0.1)
        assert stats.output_tokens.mean == pytest.approx(published.output_tokens[0], rel=0.1)
        assert stats.shared.mean == pytest.approx(published.shared[0], rel=0.1)
        assert stats.key_portion.mean == pytest.approx(published.key_portion[0], rel=0.1)
        assert stats.requests_per_key.mean == pytest.approx(published.requests_per_key[0], rel=0.1)
        assert stats.prompt_tokens.std == pytest.approx(published.prompt_tokens[1], rel=0.25)
        assert stats.output_tokens.std == pytest.approx(published.output_tokens[1], rel=0.2)
        assert stats.shared.std == pytest.approx(published.shared[1], rel=0.15)
        if name != "programming":  # there one node that all requests have makes it grow with their number
            assert stats.requests_per_key.std == pytest.approx(published.requests_per_key[1], rel=0.3)


class TestShape:
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_blocks_are_chained_and_fill_the_prompts(self, name: str) -> None:
        recording = record(parse_workload(name, 700), seed=1)
        assert broken_chain(recording) is None
        assert (recording.recorded_blocks == recording.prompt_tokens // BLOCK_TOKENS).all()
        assert recording.run_counts.min() > 0

    @pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {"embodied"}))
    def test_prompts_of_a_group_share_a_part_and_have_one_of_their_own(self, name: str) -> None:
        recording = record(parse_workload(name, 400), seed=1)
        ids, firsts = recording.block_ids(0, 400)
        paths = [part.tolist() for part in np.split(ids, firsts[1:])]
        assert len({path[-1] for path in paths}) == 400
        assert (continued_by(recording) == -1).all()
        by_group: dict[str, list[list[int]]] = {}
        for session, path in zip(recording.sessions, paths, strict=True):
            by_group.setdefault(session, []).append(path)
        system_blocks = WORKLOADS[name].system_tokens // BLOCK_TOKENS  # type: ignore[union-attr]
        for one, *others in by_group.values():
            for other in others:
                same = sum(a == b for a, b in zip(one, other, strict=False))
                assert system_blocks < same < min(len(one), len(other))

    def test_episodes_grow_by_answer_and_observation(self) -> None:
        trace = generate("embodied?requests=600", 2)
        steps: dict[str, list[Any]] = {}
        for request in trace.requests:
            steps.setdefault(request.session, []).append(request)
        assert len(steps) == round(600 / 48)
        for episode in steps.values():
            for before, after in pairwise(episode):
                grown = after.prompt_tokens - before.prompt_tokens
                assert before.output_tokens < grown <= before.output_tokens + 32
                assert before.next_path == after.path
                assert after.path.startswith(before.path)
            assert episode[-1].next_path == b""

    @pytest.mark.parametrize("name", WORKLOADS)
    @pytest.mark.parametrize("requests", [1, 2, 7])
    def test_a_few_requests_are_a_trace_too(self, name: str, requests: int) -> None:
        trace = generate(f"{name}?requests={requests}")
        assert len(trace.requests) == requests
        assert trace.requests[0].arrival_s == 0.0


class TestPopularity:
    def test_zipf_makes_the_first_groups_popular_and_keeps_the_lengths(self) -> None:
        trace = generate("toolbench?requests=8000&zipf=1.1&groups=200", 1)
        counts = [count for _, count in Counter(each.session for each in trace.requests).most_common()]
        assert counts[0] / counts[1] == pytest.approx(2**1.1, rel=0.15)
        assert counts[0] / counts[9] == pytest.approx(10**1.1, rel=0.25)
        stats = measure_trace(trace)
        assert stats.prompt_tokens.mean == pytest.approx(1835, rel=0.01)
        assert 180 < stats.sessions <= 200

    def test_zipf_of_zero_is_even(self) -> None:
        counts = Counter(each.session for each in generate("toolbench?requests=4000&zipf=0&groups=20").requests)
        assert len(counts) == 20
        assert min(counts.values()) > 140

    def test_groups_without_zipf_keep_the_spread(self) -> None:
        stats = measure_trace(generate("toolbench?requests=4000&groups=50"))
        assert stats.sessions == 50
        assert stats.requests_per_key.std / stats.requests_per_key.mean > 1

    def test_more_groups_than_requests_are_one_each(self) -> None:
        assert len({each.session for each in generate("videoqa?requests=30&groups=500").requests}) == 30

    def test_episodes_have_no_popularity(self) -> None:
        with pytest.raises(SettingsError, match=r"zipf is 1\.1: episodes"):
            generate("embodied?zipf=1.1")


class TestArrivals:
    def test_poisson(self) -> None:
        stamps = poisson(np.random.default_rng(1), 20_000, 8.0)
        gaps = np.diff(stamps)
        assert stamps[0] == 0
        assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
        assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)

    def test_bursts_are_those_of_a_code_assistant(self) -> None:
        def dispersion(stamps: np.ndarray[Any, Any], window_s: float) -> float:
            counts = np.bincount((stamps // window_s).astype(int))[:-1]
            return float(counts.var() / counts.mean())

        runs = [azure(np.random.default_rng(seed), 8819, 2.567) for seed in range(20)]
        for stamps in runs:
            assert stamps[0] == 0
            assert (np.diff(stamps) >= 0).all()
            assert stamps[-1] == pytest.approx(8818 / 2.567, abs=1e-3)
        assert np.mean([dispersion(stamps, 10) for stamps in runs]) == pytest.approx(71.65, rel=0.1)
        assert np.mean([dispersion(stamps, 1) for stamps in runs]) == pytest.approx(13.18, rel=0.1)

    def test_another_rate_is_the_same_process_sped_up(self) -> None:
        slow = azure(np.random.default_rng(3), 500, 2.0)
        fast = azure(np.random.default_rng(3), 500, 8.0)
        assert fast * 4 == pytest.approx(slow, abs=1e-5)

    @pytest.mark.parametrize("arrivals", ["poisson", "azure"])
    def test_a_trace_has_the_rate_it_was_asked_for(self, arrivals: str) -> None:
        stats = measure_trace(generate(f"toolbench?requests=5000&rate=20&arrivals={arrivals}", 3))
        assert stats.rate == pytest.approx(20, rel=0.05)
        assert stats.dispersion is not None
        assert (stats.dispersion > 20) == (arrivals == "azure")


class TestMixes:
    def test_shares_are_exact_and_nothing_is_shared_between_them(self) -> None:
        trace = generate("toolbench*3+videoqa?requests=1000", 4)
        assert trace.name == "toolbench*3+videoqa"
        kinds = [each.session.split("-")[0] for each in trace.requests]
        assert Counter(kinds) == {"toolbench": 750, "videoqa": 250}
        assert Counter(kinds[:500])["videoqa"] == pytest.approx(125, abs=35)
        blocks: dict[str, set[int]] = {"toolbench": set(), "videoqa": set()}
        for kind, request in zip(kinds, trace.requests, strict=True):
            blocks[kind].update(np.frombuffer(request.path, "<u8").tolist())
        assert not blocks["toolbench"] & blocks["videoqa"]

    def test_each_part_is_what_it_is_alone(self) -> None:
        mixed = generate("embodied+loogle?requests=800", 4)
        prompts = [each.prompt_tokens for each in mixed.requests if each.session.startswith("loogle")]
        assert np.mean(prompts) == pytest.approx(23474, rel=0.01)
        # The order of each part is kept: episodes go on.
        assert sum(bool(each.next_path) for each in mixed.requests) > 380

    def test_a_part_may_get_no_request(self) -> None:
        trace = generate("toolbench*1000+videoqa?requests=10")
        assert {each.session.split("-")[0] for each in trace.requests} == {"toolbench"}


class TestSeed:
    @pytest.mark.parametrize("source", ["toolbench?zipf=1.1", "embodied", "programming+videoqa?arrivals=azure"])
    def test_a_seed_gives_the_same_trace_and_another_another(self, source: str) -> None:
        assert generate(source, 7) == generate(source, 7)
        assert generate(source, 7) != generate(source, 8)

    def test_the_trace_of_a_seed_is_the_same_everywhere(self) -> None:
        trace = generate("toolbench*2+embodied+programming+videoqa+loogle?requests=600&arrivals=azure", 1)
        digest = hashlib.sha256(msgspec.msgpack.encode(trace)).hexdigest()
        assert digest[:16] == "605b8d9a1cdd1eff"


class TestDraws:
    def test_lengths_have_the_wanted_weighted_mean_within_their_bounds(self) -> None:
        chance = np.random.default_rng(0)
        weights = np.array([1000, 1, 1, 1, 30, 2, 2, 5])
        lengths = draw_lengths(chance, Spread(1405, 740, 300, 3600), weights)
        assert np.average(lengths, weights=weights) == pytest.approx(1405, abs=1)
        assert lengths.min() >= 300
        assert lengths.max() <= 3600
        beyond = draw_lengths(chance, Spread(50, 10, 100, 200), weights)
        assert beyond.tolist() == [100] * 8

    def test_group_sizes_add_up(self) -> None:
        sizes = group_sizes(np.random.default_rng(0), Spread(39, 64), 4000)
        assert (sizes.size, int(sizes.sum()), int(sizes.min())) == (103, 4000, 2)
        assert sizes.std() == pytest.approx(64, rel=0.3)
        assert group_sizes(np.random.default_rng(0), Spread(39, 64), 3).tolist() == [3]

    def test_zipf_sizes_add_up_and_leave_nobody_empty(self) -> None:
        sizes = zipf_sizes(np.random.default_rng(0), 1000, 1.5, 500)
        assert int(sizes.sum()) == 500
        assert sizes.min() >= 1
        assert sizes.size < 500

    def test_apportioning(self) -> None:
        assert apportion(np.array([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
        assert apportion(np.array([0.5, 0.2, 0.3]), 10).tolist() == [5, 2, 3]
        assert apportion(np.array([1000.0, 1.0]), 5).tolist() == [5, 0]


class TestSources:
    def test_all_keys(self) -> None:
        source = "workload:toolbench*3+videoqa?requests=900&rate=36&zipf=1.1&groups=640&arrivals=azure"
        assert parse_workload(source) == Workload((("toolbench", 3.0), ("videoqa", 1.0)), 900, 36.0, 1.1, 640, "azure")
        assert parse_workload("workload:loogle") == Workload((("loogle", 1.0),), 2000, 10.0)

    def test_a_limit_is_how_many_are_generated_unless_said(self) -> None:
        assert len(read_trace("workload:videoqa", limit=70).requests) == 70
        assert len(read_trace("workload:videoqa?requests=50", limit=70).requests) == 50
        assert len(read_trace("workload:videoqa?requests=90", limit=70).requests) == 70

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                "chat",
                "workload:chat: unknown workload 'chat'; known are toolbench, embodied, programming, videoqa, loogle",
            ),
            ("toolbench+", "unknown workload ''"),
            ("toolbench?speed=3", "unknown key 'speed'; known are requests, rate, zipf, groups and arrivals"),
            ("toolbench?requests=1.5", r"requests is '1\.5', must be a whole number"),
            ("toolbench?requests=", "requests is '', must be a whole number"),
            ("toolbench?requests=0", "requests is 0, must be above 0"),
            ("toolbench?requests=99999999", "requests is 99999999, must be at most 10000000"),
            ("toolbench?rate=fast", "rate is 'fast', must be a number"),
            ("toolbench?rate=-2", "rate is -2, must be above 0"),
            ("toolbench?rate=nan", "rate is nan"),
            ("toolbench?rate=inf", "rate is inf"),
            ("toolbench?zipf=-1", "zipf is -1, must not be negative"),
            ("toolbench?groups=0", "groups is 0"),
            ("toolbench*x", "weight is 'x', must be a number"),
            ("toolbench*0", "the weight of toolbench is 0"),
            ("toolbench?arrivals=uniform", "unknown arrivals 'uniform'; known are poisson, azure"),
        ],
    )
    def test_faults_are_named(self, source: str, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            read_trace(f"workload:{source}")
