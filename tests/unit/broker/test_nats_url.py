"""URLs of NATS: what they say, and what is wrong with others, never showing a password."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest
from micro_ray.nats_url import Place, parse, tls_context


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("nats://a", Place(servers=("a:4222",))),
        (
            "nats://a:1,b.c-d,10.0.0.1:65535/",
            Place(servers=("a:1", "b.c-d:4222", "10.0.0.1:65535")),
        ),
        ("nats://[::1]:4223, [fe80::1]", Place(servers=("[::1]:4223", "[fe80::1]:4222"))),
        ("tls://u:p@a", Place(servers=("a:4222",), tls=True, user="u", password="p")),
        ("nats://u:@a", Place(servers=("a:4222",), user="u")),
        ("nats://t%40k@a,b", Place(servers=("a:4222", "b:4222"), token="t@k")),
        (
            "nats://u%3A:p%40%3A%2Fw%C3%B6@a",
            Place(servers=("a:4222",), user="u:", password="p@:/wö"),
        ),
        ("nats://u:p@w@a", Place(servers=("a:4222",), user="u", password="p@w")),
    ],
)
def test_what_they_say(url: str, place: Place) -> None:
    assert parse(url) == place
    assert "secret" not in repr(parse("nats://u:secret@a"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "no '://'"),
        ("nats", "no '://'"),
        ("nats:a:4222", "no '://'"),
        ("natss://a", "'natss' is not nats or tls"),
        ("etcd://a", "'etcd' is not nats or tls"),
        ("nats://", "a server is missing"),
        ("nats://a,,b", "a server is missing"),
        ("nats://u:secret", "server 'u' is not like host:port"),
        ("nats://a:0", "no port from 1 to 65535"),
        ("nats://a:65536", "no port from 1 to 65535"),
        ("nats://a:x", "'a' is not like host:port"),
        ("nats://a b", "'a b' is not like host:port"),
        ("nats://a/path", "'a/path' is not like host:port"),
        ("nats://a?x=1", "'a?x=1' is not like host:port"),
        ("nats://:secret@a", "no user"),
        ("nats://@a", "no user"),
        ("nats://u:secret@", "a server is missing"),
        ("nats://u:secret@a:99999", "no port"),
    ],
)
def test_what_is_wrong(url: str, told: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse(url)
    assert raised.value.id == "settings"
    assert "broker.url" in raised.value.detail
    assert told in raised.value.detail
    assert "secret" not in raised.value.detail


def test_files_of_tls(tmp_path: Path) -> None:
    assert tls_context().verify_mode is ssl.CERT_REQUIRED
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for files, named in (
        ((str(tmp_path / "none.pem"),), "broker.tls_ca"),
        ((str(nonsense),), "broker.tls_ca"),
        (("", str(nonsense), str(nonsense)), "broker.tls_cert"),
        (("", "", str(nonsense)), "broker.tls_key"),
    ):
        with pytest.raises(BadRequest, match=named):
            tls_context(*files)
