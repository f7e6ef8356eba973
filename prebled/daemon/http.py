"""The HTTP front door: OpenAI's API and the probes, as an ASGI application over a `Gateway`.

The rule: whatever comes in, the answer is in OpenAI's shape, with a truthful status and an `x-request-id`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import structlog
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from prebled.daemon.gateway import Gateway, ModelInfo
from prebled.daemon.http_exchange import ClientGone, Exchange
from prebled.daemon.http_generation import GenerationEndpoint
from prebled.daemon.inputs import shown
from prebled.daemon.metrics_http import OTHER_ROUTES, HttpMeter
from prebled.daemon.openai import read_chat, read_completion
from prebled.daemon.sse import ChatWriter, CompletionWriter
from prebled.errors import (
    Draining,
    InternalError,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    PrebledError,
    Saturated,
    Unavailable,
)
from prebled.messages import DaemonStatus
from prebled.settings import LimitSettings

log = structlog.get_logger()

Handler = Callable[..., Awaitable[None]]  # of an Exchange and the path's parameters
Expose = Callable[[str], tuple[bytes, bytes]]  # Accept header to content type and body


def create_app(gateway: Gateway, limits: LimitSettings, expose: Expose, meter: HttpMeter) -> ASGIApp:
    """The application; it knows no addresses. Needs a server with the extensions of `http_protocol` to cut off clients
    that do not read. `expose` gives the metrics, `meter` counts what is answered."""

    completion = partial(read_completion, default_max_tokens=limits.default_completion_tokens)
    chats = GenerationEndpoint(gateway, read_chat, ChatWriter, limits.max_body_bytes)
    completions = GenerationEndpoint(gateway, completion, CompletionWriter, limits.max_body_bytes)

    def route(path: str, handler: Handler, *methods: str, is_probe: bool = False) -> Route:
        return Route(path, _Endpoint(handler, limits, meter, path, methods, is_probe=is_probe))

    routes = [
        route("/v1/chat/completions", chats, "POST"),
        route("/v1/completions", completions, "POST"),
        route("/v1/models", partial(_models, gateway), "GET", "HEAD"),
        route("/v1/models/{name:path}", partial(_model, gateway), "GET", "HEAD"),
        route("/health", partial(_health, gateway), "GET", "HEAD", is_probe=True),
        route("/live", _live, "GET", "HEAD", is_probe=True),
        route("/ready", partial(_ready, gateway), "GET", "HEAD", is_probe=True),
        route("/metrics", partial(_metrics, expose), "GET", "HEAD", is_probe=True),
    ]
    return Router(routes, default=_Endpoint(_not_found, limits, meter, OTHER_ROUTES), redirect_slashes=False)


class _Endpoint:
    """An ASGI application of one handler: checks the method and turns what is raised into an answer. No `methods`: any.
    `route`: what its requests are counted as. Probes are answered however many connections there are."""

    def __init__(
        self,
        handler: Handler,
        limits: LimitSettings,
        meter: HttpMeter,
        route: str,
        methods: tuple[str, ...] = (),
        *,
        is_probe: bool = False,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._answered = partial(meter.answered, route)
        self._gone = partial(meter.gone, route)
        self._methods = methods
        self._is_probe = is_probe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._limits.retry_after_s, self._answered)
        try:
            await self._handle(exchange, scope.get("path_params", {}))
        except ClientGone:
            if not exchange.is_started:
                self._gone()
        except MethodNotAllowed as error:
            await exchange.refuse(error, [(b"allow", ", ".join(self._methods).encode())])
        except PrebledError as error:
            await exchange.refuse(error)
        except Exception as error:
            log.error("request failed", request_id=exchange.request_id, exc_info=error)
            await exchange.refuse(InternalError("internal error"))

    async def _handle(self, exchange: Exchange, path_params: dict[str, str]) -> None:
        if exchange.is_crowded and not self._is_probe:
            raise Saturated(f"more than {self._limits.max_connections} connections are open")
        if self._methods and exchange.method not in self._methods:
            raise MethodNotAllowed(f"{exchange.method} is not allowed here; {self._methods[0]} is")
        await self._handler(exchange, **path_params)


async def _models(gateway: Gateway, exchange: Exchange) -> None:
    await exchange.reply(200, msgspec.json.encode({"object": "list", "data": [_model_object(gateway.model())]}))


async def _model(gateway: Gateway, exchange: Exchange, name: str) -> None:
    model = gateway.model()
    if name != model.name:
        raise ModelNotFound(f"the model {shown(name)} does not exist; served here: {model.name!r}", param="model")
    await exchange.reply(200, msgspec.json.encode(_model_object(model)))


def _model_object(model: ModelInfo) -> dict[str, Any]:
    fields = {"id": model.name, "object": "model", "created": model.created, "owned_by": "prebled"}
    # As vLLM and SGLang tell it.
    return fields | {"max_model_len": model.context_tokens} if model.context_tokens else fields


async def _live(exchange: Exchange) -> None:
    """The process answers."""
    await exchange.reply(200, b'{"status":"live"}')


async def _health(gateway: Gateway, exchange: Exchange) -> None:
    """Something here can serve."""
    status = gateway.status()
    if not any(worker.state == "ready" for worker in status.workers):
        raise Unavailable(f"no worker is ready: {_worker_states(status)}")
    await exchange.reply(200, b'{"status":"healthy"}')


async def _ready(gateway: Gateway, exchange: Exchange) -> None:
    """New requests are welcome."""
    status = gateway.status()
    if status.draining:
        raise Draining("the daemon is draining and accepts no new requests")
    if not status.ready:
        raise Unavailable(f"no worker is ready: {_worker_states(status)}")
    await exchange.reply(200, b'{"status":"ready"}')


async def _metrics(expose: Expose, exchange: Exchange) -> None:
    """For Prometheus."""
    content_type, body = expose(exchange.accept)
    await exchange.reply(200, body, content_type=content_type)


def _worker_states(status: DaemonStatus) -> str:
    states = [f"{worker.id} {worker.state}{worker.detail and f' ({worker.detail})'}" for worker in status.workers]
    return ", ".join(states) or "none is known"


async def _not_found(exchange: Exchange) -> None:
    raise NotFound(f"there is nothing at {shown(exchange.path)}")
