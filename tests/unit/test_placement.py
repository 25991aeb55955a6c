"""Where members of the pools run on a Ray of several machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from micro_ray.actors.placement import Machine, machine_of, with_addresses
from micro_ray.settings import Settings, bootstrap, load

SERVER, OTHER = Machine(id="a", address="10.0.0.1"), Machine(id="b", address="10.0.0.2")
BOTH = (SERVER, OTHER)


def settings(**overrides: object) -> Settings:
    return load({}, {"state": "/s", **overrides})


@pytest.mark.parametrize(
    "service", ["registry", "store", "broker", "events", "config", "auth", "runtime"]
)
def test_what_is_kept_on_the_servers_machine_runs_there(service: str) -> None:
    for index in range(4):
        assert machine_of(settings(), service, index, BOTH) == (SERVER, True)


def test_routers_take_turns_and_may_move() -> None:
    placed = [machine_of(settings(), "router", index, BOTH) for index in range(3)]
    assert placed == [(SERVER, False), (OTHER, False), (SERVER, False)]


def test_who_keeps_nothing_is_anywhere() -> None:
    assert machine_of(settings(), "network", 0, BOTH) == (None, False)


@pytest.mark.parametrize(
    ("service", "url"),
    [("store", "postgres://u:p@db/micro"), ("broker", "nats://nats:4222")],
)
def test_who_keeps_it_elsewhere_is_anywhere(service: str, url: str) -> None:
    given = settings(**{f"{service}.url": url})
    assert machine_of(given, service, 1, BOTH) == (None, False)


def test_a_key_file_that_was_named_is_on_every_machine() -> None:
    given = settings(**{"config.key_file": Path("/etc/micro/keys")})
    assert machine_of(given, "config", 0, BOTH) == (None, False)


def test_others_begin_at_known_ports() -> None:
    given = settings(**{"pools.router": 3, "network.router_port": 9500})
    found = bootstrap(with_addresses(given, BOTH), {})
    assert found.registry == ("unix:/s/run/registry-0.sock", "tcp:10.0.0.1:7400")
    assert found.routers == (
        *(f"unix:/s/run/router-{i}.sock" for i in range(3)),
        "tcp:10.0.0.1:9500",
        "tcp:10.0.0.2:9501",
        "tcp:10.0.0.1:9502",
    )


def test_each_machine_has_an_auth_cache() -> None:
    given = with_addresses(settings(**{"auth.key_file": Path("/etc/micro/auth.keys")}), BOTH)
    assert given.pools.authcache == 2
    assert [machine_of(given, "authcache", i, BOTH) for i in range(2)] == [
        (SERVER, False),
        (OTHER, False),
    ]
    assert machine_of(given, "auth", 1, BOTH) == (OTHER, False)
    assert bootstrap(given, {}).auths == (
        "unix:/s/run/authcache-0.sock",
        "unix:/s/run/authcache-1.sock",
        "unix:/s/run/auth-0.sock",
        "tcp:10.0.0.1:7700",
    )
    many = [Machine(id=str(n), address=f"10.0.1.{n}") for n in range(100)]
    assert with_addresses(settings(), many).pools.authcache == 64
    assert with_addresses(settings(**{"pools.authcache": 3}), BOTH).pools.authcache == 3


def test_an_ipv6_address_is_one() -> None:
    found = with_addresses(settings(), [Machine(id="a", address="fd00::1")])
    assert found.network.registry_addresses == ("tcp:[fd00::1]:7400",)
