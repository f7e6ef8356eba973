"""Known placement policies that `e2` is compared with, each by the rule of its source."""

from __future__ import annotations

from prebled.core.decisions import Mode
from prebled.core.sight import Choice, Numbers, Sight, least


class RoundRobin:
    """The worker that was given a request longest ago; blind to everything else. What it compares is how many requests
    ago that was, not seconds."""

    name = "round-robin"

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        turn = sight.last_booked.copy()
        return Choice(least(turn, turn), "explore", sight.load_s(), sight.prefill_s(), turn)


class LeastLoaded:
    """The worker with the least work still to do; blind to prefixes."""

    name = "least-loaded"

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        load_s = sight.load_s()
        return Choice(least(load_s, sight.last_booked), "explore", load_s, sight.prefill_s(), load_s)


class CacheAware:
    """The rule of SGLang's router (sgl-model-gateway, `cache_aware.rs`). It compares requests in flight. They are
    imbalanced if the most exceed the fewest by more than `apart` and by more than `times` as many: then the fewest.
    Otherwise, if more than `share` of the prompt matches, the best match; else the fewest.

    The router matches text in a tree of what it has sent, ours blocks of tokens believed to be held. Of several equal
    matches it takes any, here the first by slot. Its comments name the smallest tree in place of the fewest requests;
    the code does what is done here.
    """

    name = "cache-aware"

    def __init__(self, *, share: float = 0.3, apart: int = 64, times: float = 1.5) -> None:
        """The router's defaults."""
        self._share = share
        self._apart = apart
        self._times = times

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        requests, cached_tokens = sight.requests.copy(), sight.cached_tokens
        fewest = least(requests, sight.last_booked)
        best = int(cached_tokens.argmax())
        low, high = float(requests[fewest]), float(requests.max())
        is_matched = cached_tokens[best] > self._share * sight.prompt_tokens
        is_imbalanced = high - low > self._apart and high > self._times * low
        load_s, prefill_s = sight.load_s(), sight.prefill_s()
        if is_matched and not is_imbalanced:
            return Choice(best, "exploit", load_s, prefill_s, requests)
        adjusted: tuple[str, ...] = ()
        if is_matched and fewest != best:
            adjusted = (f"rebalanced: {high:.0f} requests on one worker, {low:.0f} on {sight.ids[fewest]}",)
        return Choice(fewest, "explore", load_s, prefill_s, requests, adjusted=adjusted)


class Dynamo:
    """The cost of NVIDIA Dynamo's KV router, in its newer form and without its optional random choice (temperature 0):
    `prefill_load_scale` times the blocks to prefill (those waiting there and the request's uncached ones) plus the
    blocks that decode (of the requests in flight there and of this one). It compares blocks, not seconds. The older
    form leaves out the blocks that wait."""

    name = "dynamo"

    def __init__(self, *, prefill_load_scale: float = 1.0) -> None:
        self._scale = prefill_load_scale

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        prefill_tokens = sight.waiting_tokens + (sight.prompt_tokens - sight.cached_tokens)
        decode_tokens = sight.kv_tokens + sight.prompt_tokens
        blocks = (self._scale * prefill_tokens + decode_tokens) / sight.block_tokens
        return _least_cost(sight, blocks)


class LMetric:
    """LMetric (OSDI 2026, section 6.2): prefill tokens on the worker, waiting and of this request, times the requests
    that it would then have. It compares that product, not seconds."""

    name = "lmetric"

    def choose(self, sight: Sight) -> Choice:
        """See `Policy`."""
        prefill_tokens = sight.waiting_tokens + (sight.prompt_tokens - sight.cached_tokens)
        return _least_cost(sight, prefill_tokens * (sight.requests + 1))


def _least_cost(sight: Sight, cost: Numbers) -> Choice:
    """By least cost; called exploit where the chosen worker holds more of the prompt than it misses."""
    chosen = least(cost, sight.last_booked)
    mode: Mode = "exploit" if 2 * sight.cached_tokens[chosen] > sight.prompt_tokens else "explore"
    return Choice(chosen, mode, sight.load_s(), sight.prefill_s(), cost)
