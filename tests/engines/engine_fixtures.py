"""The engines under test, each loaded once for the whole run. A plugin of the test modules that name it."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from engine_driver import BLOCK_TOKENS, Driver

from prebled.settings import SimSettings
from prebled.tiny_model import EOS_TOKEN_IDS, VOCAB_SIZE
from prebled.worker.engine import Engine

Make = Callable[..., Engine]


def _make_sim(model: Path) -> Make:
    from prebled.worker.sim_engine import SimEngine

    def make(kv_tokens: int, context_tokens: int, max_running: int) -> Engine:
        settings = SimSettings(kv_tokens=kv_tokens, context_tokens=context_tokens, max_running=max_running, speed=50.0)
        return SimEngine(settings, BLOCK_TOKENS, model=str(model), vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS)

    return make


def _make_sglang(model: Path) -> Make:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed")
    from prebled.worker.sglang_engine import SGLangEngine

    def make(kv_tokens: int, context_tokens: int, max_running: int, tp: int = 1) -> Engine:
        return SGLangEngine(
            str(model),
            tp=tp,
            block_tokens=BLOCK_TOKENS,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            device="cpu",
            server_args={"max_running_requests": max_running, "chunked_prefill_size": 512},
        )

    return make


@pytest.fixture(scope="session", params=["sim", pytest.param("sglang", marks=pytest.mark.sglang)])
def engine_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def drivers(engine_kind: str, tiny_model: Path) -> AsyncIterator[Mapping[str, Driver]]:
    """Engines loaded side by side: `wide`, bounded by its context; `narrow`, bounded by its KV cache and to one run at
    a time; `parallel`, SGLang only, with two tensor-parallel ranks, for the test that kills it."""
    make = {"sim": _make_sim, "sglang": _make_sglang}[engine_kind](tiny_model)
    engines = {
        "wide": make(kv_tokens=16384, context_tokens=1024, max_running=16),
        "narrow": make(kv_tokens=1024, context_tokens=4096, max_running=1),
    }
    if engine_kind == "sglang":
        engines["parallel"] = make(kv_tokens=2048, context_tokens=1024, max_running=2, tp=2)
    async with asyncio.TaskGroup() as group:
        starts = {name: group.create_task(engine.start(lambda text: None)) for name, engine in engines.items()}
    yield {name: Driver(engine, starts[name].result()) for name, engine in engines.items()}
    for engine in engines.values():
        await engine.stop()


@pytest.fixture
def wide(drivers: Mapping[str, Driver]) -> Driver:
    return drivers["wide"]


@pytest.fixture
def narrow(drivers: Mapping[str, Driver]) -> Driver:
    return drivers["narrow"]
