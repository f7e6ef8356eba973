"""`/metrics` as a door: formats, methods, every listener, and routes as the only labels."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from scripted_gateway import ScriptedGateway, serving

from prebled.daemon.http_server import HttpServer
from prebled.daemon.streams import RequestStream
from prebled.errors import WorkerFailed


def counted(text: str) -> dict[tuple[str, str], float]:
    """Requests by route and class of status."""
    (family,) = parse_plain(text)
    return {(sample.labels["route"], sample.labels["status"]): sample.value for sample in family.samples}


def client_of(server: HttpServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{server.addresses[0]}", timeout=20)


async def test_formats() -> None:
    async with serving() as (server, _), client_of(server) as client:
        plain = await client.get("/metrics")
        assert plain.status_code == 200
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert plain.headers["x-request-id"]
        assert [family.name for family in parse_plain(plain.text)] == ["prebled_http_requests"]
        accept = [("accept", "application/openmetrics-text; version=1.0.0"), ("accept", "text/plain;q=0.1")]
        strict = await client.get("/metrics", headers=accept)
        assert strict.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        assert strict.text.endswith("# EOF\n")
        assert [family.name for family in parse_openmetrics(strict.text)] == ["prebled_http_requests"]


@pytest.mark.parametrize("accept", [b"\xff\xfe", b"application/openmetrics-text;version=1.x", b";" * 20_000, b""])
async def test_a_strange_accept_header_gets_plain_text(accept: bytes) -> None:
    async with serving() as (server, _), client_of(server) as client:
        answer = await client.get("/metrics", headers={b"accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_head_and_other_methods() -> None:
    async with serving() as (server, _), client_of(server) as client:
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        post = await client.post("/metrics")
        assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")


async def test_every_listener_tells_the_same(short_dir: object) -> None:
    async with serving("127.0.0.1:0", f"unix:{short_dir}/h.sock") as (server, _):
        transport = httpx.AsyncHTTPTransport(uds=f"{short_dir}/h.sock")
        async with client_of(server) as tcp, httpx.AsyncClient(transport=transport, base_url="http://x") as unix:
            await tcp.get("/live")
            await unix.get("/live")
            first, second = await tcp.get("/metrics"), await unix.get("/metrics")
        assert counted(first.text) == {("/live", "2xx"): 2}
        assert counted(second.text) == {("/live", "2xx"): 2, ("/metrics", "2xx"): 1}


async def test_routes_are_templates_and_the_unknown_is_other() -> None:
    async def fail(stream: RequestStream) -> None:
        raise WorkerFailed("test")

    async with serving() as (server, gateway), client_of(server) as client:
        for path in ("/", "/nowhere", "/metrics/", '/a"b{}', "/v1/engines/x", "/" + "y" * 500, "/LIVE"):
            assert (await client.get(path)).status_code == 404
        await client.get("/v1/models/tiny")
        await client.get("/v1/models/evil")
        await client.delete("/live")
        await client.post("/v1/completions", json={"prompt": "x"})
        await client.post("/v1/completions", json={"prompt": 7.5})
        gateway.script = fail
        await client.post("/v1/completions", json={"prompt": "x"})
        await client.post("/v1/completions", json={"prompt": "x", "stream": True})
        gateway.worker_state = "loading"
        await client.get("/ready")
        text = (await client.get("/metrics")).text
    assert counted(text) == {
        ("other", "4xx"): 7,
        ("/v1/models/{name:path}", "2xx"): 1,
        ("/v1/models/{name:path}", "4xx"): 1,
        ("/live", "4xx"): 1,
        ("/v1/completions", "2xx"): 1,
        ("/v1/completions", "4xx"): 1,
        ("/v1/completions", "5xx"): 2,
        ("/ready", "5xx"): 1,
    }


async def test_a_client_that_left_is_gone() -> None:
    async def wait_forever(stream: RequestStream) -> None:
        await asyncio.Event().wait()

    async with serving() as (server, gateway):
        gateway.script = wait_forever
        host, _, port = server.addresses[0].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = b'{"prompt": "x"}'
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        async with asyncio.timeout(10):
            while not gateway.streams:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            writer.close()
            await gateway.abort_seen.wait()
            while not counted_now(gateway):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert counted_now(gateway) == {("/v1/completions", "gone"): 1}


def counted_now(gateway: ScriptedGateway) -> dict[tuple[str, str], float]:
    return counted(gateway.expose("")[1].decode())


async def test_a_crowd_does_not_keep_prometheus_out() -> None:
    async with serving(max_connections=1) as (server, _):
        host, _, port = server.addresses[0].rpartition(":")
        _, idle = await asyncio.open_connection(host, int(port))
        try:
            async with client_of(server) as client:
                assert (await client.get("/v1/models")).status_code == 429
                text = (await client.get("/metrics")).text
            assert counted(text) == {("/v1/models", "4xx"): 1}
        finally:
            idle.close()
