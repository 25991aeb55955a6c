"""What an address looks like."""

from __future__ import annotations

import pytest

from micro_ray.errors import BadRequest
from micro_ray.wire.address import MAX_PATH, Address, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", Address(path="/run/a.sock")),
        ("unix:/run/with space:and:colons", Address(path="/run/with space:and:colons")),
        ("tcp:127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("tcp:localhost:0", Address(host="localhost", port=0)),
        ("tcp:a-b.example.org:65535", Address(host="a-b.example.org", port=65535)),
        ("tcp:[::1]:8080", Address(host="::1", port=8080)),
        ("tcp:[fe80::1:2]:1", Address(host="fe80::1:2", port=1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "unix", "unix:", "unix:relative", "unix:/a\0b", "unix:/\ud800", "tcp:", "tcp:host",
        "tcp::80", "tcp:host:", "tcp:host:-1", "tcp:host:65536", "tcp:host:80x", "tcp:host:8 0",
        "tcp:host:٣", "tcp:host:000080", "tcp:a b:80", "tcp:a..b:80", "tcp:-a:80", "tcp:a/b:80",
        "tcp:::1:80", "tcp:[::1:80", "tcp:[]:80", "tcp:[::1]80", "tcp:[::g]:80", "tcp:[1.2.3.4]:80",
        "tcp:user@host:80", f"tcp:{'a' * 64}:80", f"tcp:{'a.' * 130}b:80", "http://host:80",
        "TCP:host:80", " tcp:host:80", "tcp:host:80\n",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert repr(text.removeprefix("unix:"))[1:100].rstrip("'") in caught.value.detail


def test_the_longest_path() -> None:
    longest = "/" + "ä" * 53
    assert len(longest.encode()) == MAX_PATH == 107
    assert parse(f"unix:{longest}").path == longest
    with pytest.raises(BadRequest, match="over 107 bytes"):
        parse(f"unix:{longest}x")


def test_an_endless_address_is_not_repeated() -> None:
    with pytest.raises(BadRequest) as caught:
        parse("x" * 100_000)
    assert len(caught.value.detail) < 500
