"""Where etcd is, by URL: what is taken, and what is refused without what is secret."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from micro_ray.actors.backends import open_registry, registry
from micro_ray.cluster import _check
from micro_ray.errors import BadRequest
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_url import Files, Place, parse, trust
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.settings import Settings, load
from tests.fixtures.certificates import certificates
from tests.fixtures.etcd import server
from tests.fixtures.nats import free_ports
from tests.fixtures.registries import instance

SECRET = "s3cret"


def settings(pool: int = 1, **given: Any) -> Settings:
    names = {f"registry.{name}": value for name, value in given.items()}
    (port,) = free_ports(1)
    ports = {"api.port": port, "api.serve_port": 0, "proxy.port": 0}
    fixed = {"state": "/tmp/none", **ports, "pools.registry": pool}
    return load({}, {**fixed, **names})


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("etcd://a", Place(endpoints=("a:2379",))),
        ("etcd://a:1,b.c:65535", Place(endpoints=("a:1", "b.c:65535"))),
        ("etcd://[::1]:1, [fe80::1]/", Place(endpoints=("[::1]:1", "[fe80::1]:2379"))),
        ("etcds://10.0.0.1", Place(endpoints=("10.0.0.1:2379",), tls=True)),
        ("etcd://u:word@a", Place(endpoints=("a:2379",), user="u", password="word")),
        (
            "etcd://u%3A:p%40%2F%C3%A4@a",
            Place(endpoints=("a:2379",), user="u:", password="p@/ä"),
        ),
    ],
)
def test_what_is_taken(url: str, place: Place) -> None:
    assert parse(url) == place
    assert place.password == "" or place.password not in repr(place)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("etcd", "no '://'"),
        ("http://a", "'http' is not etcd or etcds"),
        ("etcd://", "a host is missing"),
        ("etcd://a,,b", "a host is missing"),
        ("etcd://a:0", "no port from 1 to 65535"),
        ("etcd://a:65536", "no port from 1 to 65535"),
        ("etcd://a:x", "'a' is not like host:port"),
        ("etcd://a/b", "is not like host:port"),
        ("etcd://a,a:2379", "twice"),
        (f"etcd://:{SECRET}@a", "no user before it"),
        ("etcd://user@a", "user 'user' has no password"),
        (f"etcd://user:{SECRET}", "'user' is not like host:port"),
    ],
)
def test_what_is_refused(url: str, told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(url)
    assert caught.value.detail.startswith("registry.url: ")
    assert told in caught.value.detail
    assert SECRET not in caught.value.detail
    with pytest.raises(BadRequest, match=r"registry\.url"):
        _check(settings(url=url))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"url": "memory://x"}, "nothing follows"),
        ({"url": "etcd://a", "prefix": "a b/ä"}, "registry.prefix"),
        ({"url": "etcd://a", "prefix": "//"}, "registry.prefix"),
        ({"url": "etcd://a", "tls_ca": "/x"}, "is not etcds://"),
        ({"url": "etcds://a", "tls_ca": "/none/ca.pem"}, "registry.tls_ca: /none/ca.pem"),
        ({"url": "etcds://a", "tls_cert": "/none/c", "tls_key": "/none/k"}, "registry.tls_key"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, str], told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        registry(settings(**given))
    assert told in caught.value.detail


def test_files(tmp_path: Path) -> None:
    made = certificates(tmp_path)
    files = Files(
        authority=str(made.authority), certificate=str(made.certificate), key=str(made.key)
    )
    held = trust(files)
    assert held.authority == made.authority.read_bytes()
    assert held.certificate == made.certificate.read_bytes()
    assert held.key == made.key.read_bytes()
    assert "PRIVATE" not in repr(held)
    with pytest.raises(BadRequest, match=r"registry\.tls_ca"):
        trust(Files(authority=str(made.key)))
    system = trust(Files()).authority
    assert system is None or b"BEGIN CERTIFICATE" in system


async def test_which_registry_the_settings_choose() -> None:
    async with open_registry(settings()) as opened:
        assert isinstance(opened, MemoryRegistry)
    async with server() as etcd:
        # Several actors may share it.
        given = settings(pool=3, url=f"etcd://{etcd.address}", prefix="/acme/prod/")
        _check(given)
        async with open_registry(given) as one, open_registry(given) as other:
            assert isinstance(one, EtcdRegistry)
            await one.register(instance())
            assert (await other.snapshot()).instances == (instance(),)
            kept = await etcd.ask("kv/range", key=b"/acme/prod/registry/", range_end=b"/b")
            assert int(kept["count"]) == 2  # the node and the epoch
        async with open_registry(settings(url=f"etcd://{etcd.address}")) as apart:
            assert (await apart.snapshot()).instances == ()


async def test_memory_is_of_one_process() -> None:
    with pytest.raises(BadRequest, match=r"pools\.registry to 1"):
        settings(pool=2)


async def test_no_password_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"etcd://user:{SECRET}@127.0.0.1:1"
    async with open_registry(settings(url=url, patience=0.2)) as opened:
        with pytest.raises(Exception, match="waiting for etcd") as caught:
            await opened.snapshot()
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text
