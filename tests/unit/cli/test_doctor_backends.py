"""doctor: the servers behind the platform, asked through it, or from here while it is not up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from micro_ray.broker.nats import NatsBroker
from micro_ray.cli import doctor
from micro_ray.nats_url import parse as nats_place
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_url import parse as etcd_place
from micro_ray.sdk.testing import Here, platform
from micro_ray.store.postgres import PostgresStore
from micro_ray.wire.endpoints import Endpoints
from tests.fixtures import brokers, nats
from tests.fixtures.etcd import server as etcd
from tests.fixtures.postgres import PASSWORD, Postgres
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import eventually
from tests.unit.cli.test_doctor import free_port

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def rows(terminal: Terminal, check: str) -> list[tuple[bool, str]]:
    done = await terminal.inside("doctor", "-o", "json")
    assert PASSWORD not in done.out
    return [(r["good"], r["text"]) for r in json.loads(done.out) if r["check"] == check]


@pytest.fixture
def alone(lonely: Terminal) -> Terminal:
    return lonely.within(MICRO_API_PORT=str(free_port()), MICRO_PROXY_PORT=str(free_port()))


async def test_etcd_while_there_is_no_platform(alone: Terminal) -> None:
    async with etcd() as server:
        given = alone.within(MICRO_REGISTRY_URL=f"etcd://{server.address}")
        first, *_ = await rows(given, "registry")
        assert first[0]
        assert server.address in first[1]
        await server.kill()
        ((good, text),) = await rows(given, "registry")
        assert not good
        assert text.startswith("no etcd answers")
        table = await given.inside("doctor")
        assert any(line.split()[:2] == ["registry", "WRONG"] for line in table.lines)


async def test_postgres_while_there_is_no_platform(alone: Terminal, postgres: Postgres) -> None:
    given = alone.within(MICRO_STORE_URL=postgres.url())
    first, *rest = await rows(given, "store")
    assert first[0]
    assert first[1].startswith("PostgreSQL ")
    assert any(not good and "fsync=off" in text for good, text in rest)
    assert any(good and "connections" in text for good, text in rest)
    gone = alone.within(MICRO_STORE_URL="postgres://u:p@127.0.0.1:1/d")
    ((good, text),) = await rows(gone, "store")
    assert not good
    assert "correct store.url" in text


async def test_a_registry_url_that_cannot_be(alone: Terminal) -> None:
    given = alone.within(MICRO_REGISTRY_URL="etcd://")
    ((good, text),) = await rows(given, "settings")
    assert not good
    assert "registry.url" in text


async def examined(here: Here, service: str, backend: Any) -> None:
    """A service as an actor makes it of a backend."""
    endpoints = Endpoints(service)
    endpoints.examine(backend.examine)
    await here.host(service, endpoints)
    await here.known(service)


async def test_through_the_platform(
    lonely: Terminal, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the platform finds, whatever the settings here say."""
    monkeypatch.setattr(doctor, "BACKENDS", ("etcds", "natses", "tables", "nobody"))
    async with (
        etcd() as first,
        nats.server() as second,
        EtcdRegistry(etcd_place(f"etcd://{first.address}")) as registry,
        NatsBroker(nats_place(f"nats://{second.address}")) as broker,
        PostgresStore(postgres.url()) as store,
        platform() as here,
    ):
        await eventually(lambda: brokers.up(broker))
        for service, backend in (("etcds", registry), ("natses", broker), ("tables", store)):
            await examined(here, service, backend)
        given = lonely.within(
            MICRO_ROUTER=",".join(here.bootstrap.routers), MICRO_API_PORT=str(free_port())
        )
        assert all(good for good, _ in await rows(given, "registry"))
        (good, text), (apart, who) = await rows(given, "broker")
        assert good
        assert text.startswith("NATS 2.")
        assert apart
        assert "namespaces" in who
        assert (await rows(given, "store"))[0][1].startswith("PostgreSQL ")
        ((good, text),) = await rows(given, "nobody")
        assert not good
        assert "cannot be asked" in text
        await first.kill()
        await second.kill()
        ((good, text),) = await rows(given, "registry")
        assert not good
        ((good, text),) = await rows(given, "broker")
        assert not good
        assert text.startswith(f"not connected to NATS at {second.address}")
        assert "broker.url" not in text or second.address in text
