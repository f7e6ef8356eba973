"""Holds the simulator against what it simulates: one list of requests through real SGLang workers behind a real daemon,
and through `bench.replay` with costs fitted on the same machine just before and just after.

A round is: other requests of the same kind at the same rate (nothing of them is shared with the list), the fit of the
workers' steps read from the daemon; the list itself, each request timed by its client; again other requests and the
fit. Both fits are replayed and the medians averaged, since what a machine does meanwhile drifts. Fits and replays never
see a step of the list itself.

Simulated are the scheduler's decisions, each worker's queue, cache and batches, and the time of its steps, which the
fit takes as the worker reports them: with all that SGLang does between two forward passes. Not simulated is the way of
a request from the client through daemon and worker to SGLang, and that of its first token back: that is measured, as
what a request that is alone takes beyond its one step, and added to both times of every request.

What it does not know: requests whose prompts hold answers of the real model (prompts here are made up from hashes), and
clocks of other machines: client, daemon and workers share this one.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, geometric_mean, median

import msgspec

from prebled.bench.generators_arrivals import ARRIVALS
from prebled.bench.generators_draws import Spread
from prebled.bench.generators_shapes import Grouped, Groups, Published
from prebled.bench.replay import ReplaySettings, replay
from prebled.bench.replay_profiles import Profile
from prebled.bench.replay_report import ReplayResult
from prebled.bench.serve import drive
from prebled.bench.serve_jobs import FIRST_ID, IDS, trace_jobs
from prebled.bench.serve_targets import Served, connect
from prebled.bench.trace import Trace, make_trace
from prebled.bench.trace_chance import stream
from prebled.bench.validate_compare import CachedTokens, Medians, Outcome, cached, medians
from prebled.bench.validate_load import OtherPrograms
from prebled.bench.validate_server import CHUNK_TOKENS, MAX_RUNNING, Server, server
from prebled.core.blocks import HASH_BYTES
from prebled.core.cost import CostModel
from prebled.core.policies import make_policy
from prebled.errors import EngineFailed, SettingsError
from prebled.settings import CoreSettings, FabricSettings

TOLERANCE = 0.15
"""Relative difference of medians that is close enough."""

WORKLOAD = Grouped(
    Published((456, 120), (16, 6), (0.7, 0.2), (0.7, 0.1), (8, 4)),
    system_tokens=64,
    groups=(Groups(1.0, Spread(8, 4), Spread(320, 100, 128, 640)),),
    own_tokens=Spread(72, 24, 24, 160),
    output_tokens=Spread(16, 6, 4, 40),
)
"""Tool use on a small scale: a model of two layers on one core computes some 20,000 tokens a second."""

FIRST_RATE = 10.0
"""Requests a second before the rate is chosen."""

RATE_TURNS = 8
LONE_REQUESTS, LONE_TOKENS = 15, 32


class Plan(msgspec.Struct, frozen=True):
    """What to validate. `busy`: the share of their time that workers shall compute, as replayed. `rounds`: most of
    them; a round that is close enough is the last one, unless `all_rounds`."""

    policies: tuple[str, ...] = ("e2", "round-robin")
    workers: int = 2
    requests: int = 120
    busy: float = 0.4
    rounds: int = 3
    all_rounds: bool = False
    kv_tokens: int = 131_072
    block_tokens: int = 64
    queue_policy: str = "groups"
    seed: int = 0


class Costs(msgspec.Struct, frozen=True):
    """The mean of the workers' fitted costs, and `way_s`: what a lone request takes beyond its step."""

    model: CostModel
    way_s: float


class Round(msgspec.Struct, frozen=True):
    """`rate`: requests a second. `busy`: as replayed. `ttft_error`, `e2e_error`: simulated median over the real one,
    less 1. `before`, `after`: what was fitted. `others_cores`: how many cores other programs kept busy meanwhile, where
    next to none would be right for times that mean something."""

    policy: str
    rate: float
    busy: float
    real: Medians
    simulated: Medians
    ttft_error: float
    e2e_error: float
    cached: CachedTokens
    before: Costs
    after: Costs
    others_cores: float

    @property
    def is_close(self) -> bool:
        """Whether both medians are within the tolerance."""
        return _are_close(self.ttft_error, self.e2e_error)


class Together(msgspec.Struct, frozen=True):
    """All rounds of a policy: the geometric means of simulated medians over the real ones, less 1. What the machine's
    pace does between a fit and a list makes one round too slow and the next too fast; this is what is left of it."""

    policy: str
    rounds: int
    ttft_error: float
    e2e_error: float

    @property
    def is_close(self) -> bool:
        """Whether both are within the tolerance."""
        return _are_close(self.ttft_error, self.e2e_error)


class Validation(msgspec.Struct, frozen=True):
    """All rounds, policy by policy."""

    plan: Plan
    rounds: list[Round]

    @property
    def together(self) -> list[Together]:
        """Of each policy that has rounds, in the order of the plan."""
        found = []
        for policy in self.plan.policies:
            rounds = [one for one in self.rounds if one.policy == policy]
            if rounds:
                errors = ([one.ttft_error for one in rounds], [one.e2e_error for one in rounds])
                means = [round(geometric_mean(1 + error for error in of) - 1, 4) for of in errors]
                found.append(Together(policy, len(rounds), *means))
        return found

    @property
    def is_valid(self) -> bool:
        """Whether the rounds of each policy are close together, and one of them alone, and no request that no race
        decides took other tokens from its cache than simulated."""
        close = {one.policy for one in self.together if one.is_close} & {
            one.policy for one in self.rounds if one.is_close
        }
        return close.issuperset(self.plan.policies) and not any(one.cached.certain_unequal for one in self.rounds)


def _are_close(*errors: float) -> bool:
    return all(abs(error) <= TOLERANCE for error in errors)


def check_plan(plan: Plan) -> None:
    """Raises SettingsError that names the value."""
    for policy in plan.policies:
        make_policy(policy, CoreSettings())
    if plan.queue_policy not in ("groups", "fcfs"):
        message = f"queue_policy {plan.queue_policy!r}: the simulated engine knows groups and fcfs"
        raise SettingsError(message, param="queue_policy")
    if not 0 < plan.busy < 1:
        raise SettingsError(f"busy is {plan.busy}, must be between 0 and 1", param="busy")
    trace = _trace(plan, plan.seed)
    held = _distinct_tokens(trace)
    if held > plan.kv_tokens:
        # Caches would be full of the requests before the list, which the replay knows nothing of.
        message = f"kv_tokens is {plan.kv_tokens}: the {len(trace.requests)} requests have {held} different tokens"
        raise SettingsError(message, param="kv_tokens")


async def validate(model: Path, plan: Plan, tell: Callable[[str], None]) -> Validation:
    """Carry it out; minutes. Raises what `check_plan` does, and EngineFailed if a worker or a request fails."""
    check_plan(plan)
    rounds: list[Round] = []
    for policy in plan.policies:
        tell(f"{policy}: starting {plan.workers} workers")
        async with server(
            model,
            policy=policy,
            queue_policy=plan.queue_policy,
            workers=plan.workers,
            kv_tokens=plan.kv_tokens,
            block_tokens=plan.block_tokens,
        ) as real:
            # All at once first: steps of all sizes are seen, and a rate can be told.
            await _serve(real, _trace(plan, plan.seed + 1000), concurrency=4 * plan.workers)
            for number in range(plan.rounds):
                one = await _round(real, policy, plan, plan.seed + 10 * number)
                rounds.append(one)
                tell(
                    f"{policy}: TTFT {one.real.ttft_s * 1e3:.2f} ms, simulated {one.ttft_error:+.1%}; "
                    f"E2E {one.real.e2e_s * 1e3:.2f} ms, simulated {one.e2e_error:+.1%}"
                )
                if one.is_close and not plan.all_rounds:
                    break
    return Validation(plan, rounds)


async def _round(real: Server, policy: str, plan: Plan, seed: int) -> Round:
    trace = _trace(plan, seed)
    rough = await _costs(real)
    scale = _rate_scale(trace, policy, plan, rough)
    others = OtherPrograms()
    await _serve(real, _trace(plan, seed + 1, scale))
    before = await _costs(real)
    timed = _trace(plan, seed, scale)
    outcome = await _outcome(real, await _serve(real, timed))
    await _serve(real, _trace(plan, seed + 2, scale))
    after = await _costs(real)
    others_cores = round(others.cores(), 2)
    results = [_replay(timed, policy, plan, costs) for costs in (before, after)]
    simulated = [_simulated(result, costs) for result, costs in zip(results, (before, after), strict=True)]
    found = medians(outcome)
    both = [medians(one) for one in simulated]
    expected = Medians(*(round(fmean(of), 6) for of in zip(*map(msgspec.structs.astuple, both), strict=True)))
    return Round(
        policy,
        rate=round((len(timed.requests) - 1) / timed.requests[-1].arrival_s, 2),
        busy=round(_busy(results[0], plan), 3),
        real=found,
        simulated=expected,
        ttft_error=round(expected.ttft_s / found.ttft_s - 1, 4),
        e2e_error=round(expected.e2e_s / found.e2e_s - 1, 4),
        cached=cached(timed, outcome, simulated[0]),
        before=before,
        after=after,
        others_cores=others_cores,
    )


def _trace(plan: Plan, seed: int, rate_scale: float = 1.0) -> Trace:
    recording = WORKLOAD.record(plan.requests, stream(seed, "requests"))
    recording = recording.at(ARRIVALS["poisson"](stream(seed, "arrivals"), plan.requests, FIRST_RATE))
    return make_trace("validation", recording, block_tokens=plan.block_tokens, rate_scale=rate_scale, seed=seed)


def _distinct_tokens(trace: Trace) -> int:
    blocks = {
        request.path[at : at + HASH_BYTES]
        for request in trace.requests
        for at in range(0, len(request.path), HASH_BYTES)
    }
    own = sum(request.prompt_tokens % trace.block_tokens + request.output_tokens for request in trace.requests)
    return len(blocks) * trace.block_tokens + own


# --- real ---


async def _serve(real: Server, trace: Trace, concurrency: int | None = None) -> list[Served]:
    jobs = trace_jobs(trace)
    if concurrency is not None:
        jobs = [msgspec.structs.replace(job, arrival_s=None) for job in jobs]
    served, _ = await drive(real.address, jobs, concurrency=concurrency)
    for one in served:
        if one.error is not None:
            raise EngineFailed(f"a request failed: {one.error}")
    return served


async def _outcome(real: Server, served: list[Served]) -> Outcome:
    return Outcome(
        [one.ttft_s for one in served],
        [one.e2e_s for one in served],
        [one.cached_tokens for one in served],
        await real.places([one.request_id for one in served]),
    )


async def _costs(real: Server) -> Costs:
    """Of the steps before, all of which the workers have reported by the end of this."""
    lone = []
    async with connect(real.address) as target:
        for number in range(LONE_REQUESTS):
            tokens = array("I", (FIRST_ID + (number + at) % IDS for at in range(LONE_TOKENS)))
            lone.append(await target.serve(tokens, 1))
    await asyncio.sleep(2 * FabricSettings().beat_s)
    models = [msgspec.structs.astuple(model) for model in await real.costs()]
    model = CostModel(*(fmean(values) for values in zip(*models, strict=True)))
    way_s = median(one.ttft_s for one in lone) - model.prefill_step_s(LONE_TOKENS, LONE_TOKENS)
    return Costs(model, round(way_s, 6))


# --- simulated ---


def _replay(trace: Trace, policy: str, plan: Plan, costs: Costs, rate_scale: float = 1.0) -> ReplayResult:
    settings = ReplaySettings(
        chunk_tokens=CHUNK_TOKENS, mixed_chunks=False, max_running=MAX_RUNNING, queue_policy=plan.queue_policy
    )
    profile = Profile("fitted", costs.model, plan.kv_tokens)
    result = replay(trace, policy, workers=plan.workers, profile=profile, rate_scale=rate_scale, settings=settings)
    if result.report.failed:
        raise EngineFailed(f"the simulation refused requests: {result.failures}")
    return result


def _simulated(result: ReplayResult, costs: Costs) -> Outcome:
    return Outcome(
        [seconds + costs.way_s for seconds in result.ttft_s],
        [seconds + costs.way_s for seconds in result.e2e_s],
        result.cached_tokens,
        [f"w{number}" for number in result.workers],
    )


def _busy(result: ReplayResult, plan: Plan) -> float:
    return sum(result.busy_s) / (plan.workers * result.report.sim_seconds)


def _rate_scale(trace: Trace, policy: str, plan: Plan, costs: Costs) -> float:
    """How much faster the requests have to come for workers to be as busy as planned."""
    scale = 1.0
    for _ in range(RATE_TURNS):
        scale *= plan.busy / _busy(_replay(trace, policy, plan, costs, scale), plan)
    return scale
