"""Addresses as people write them."""

from __future__ import annotations

import pytest

from prebled.addresses import TcpAddress, UnixAddress, fabric_endpoints, parse_address, parse_http_address
from prebled.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("unix:/run/p.sock", UnixAddress("/run/p.sock"), "unix:/run/p.sock"),
        ("unix:///run/p.sock", UnixAddress("/run/p.sock"), "unix:/run/p.sock"),
        ("unix:p.sock", UnixAddress("p.sock"), "unix:p.sock"),
        ("tcp:host:80", TcpAddress("host", 80), "tcp:host:80"),
        ("tcp://0.0.0.0:0", TcpAddress("0.0.0.0", 0), "tcp:0.0.0.0:0"),
        ("tcp://[::1]:65535", TcpAddress("::1", 65535), "tcp:[::1]:65535"),
    ],
)
def test_both_forms(text: str, address: object, canonical: str) -> None:
    assert parse_address(text) == parse_http_address(text) == address
    assert str(address) == canonical
    assert parse_address(canonical) == address


def test_a_bare_host_and_port_is_for_http_only() -> None:
    assert parse_http_address("127.0.0.1:8000") == TcpAddress("127.0.0.1", 8000)
    assert parse_http_address("[::1]:8000") == TcpAddress("::1", 8000)
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:8000"):
        parse_address("127.0.0.1:8000")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p.sock",
        "http://host:80",
        "unix:",
        "unix:/run/",
        "unix:/run/\0",
        "unix:/" + "x" * 107,
        "tcp:host",
        "tcp::80",
        "tcp:host:",
        "tcp:host:port",
        "tcp:host:65536",
        "tcp:host:-1",
        "tcp:host:٣",
        "tcp:host:" + "9" * 5000,
        "tcp:::1:80",
        "tcp:a b:80",
        "tcp:*:80",
        "tcp:user@host:80",
    ],
)
def test_what_is_none_is_named(text: str) -> None:
    for parse in (parse_address, parse_http_address, fabric_endpoints):
        with pytest.raises(SettingsError) as caught:
            parse(text)
        assert repr(text) in str(caught.value)


def test_endpoints_of_the_fabric() -> None:
    assert fabric_endpoints("unix:/run/f.sock") == ("ipc:///run/f.sock", "ipc:///run/f.sock.events")
    assert fabric_endpoints("unix:@f") == ("ipc://./@f", "ipc://./@f.events")
    assert fabric_endpoints("tcp://[::1]:9") == ("tcp://[::1]:9", "tcp://[::1]:10")


@pytest.mark.parametrize("text", ["tcp:host:0", "tcp:host:65535", "unix:/" + "x" * 104])
def test_the_fabric_needs_room_for_its_second_endpoint(text: str) -> None:
    parse_address(text)
    with pytest.raises(SettingsError, match="address"):
        fabric_endpoints(text)
