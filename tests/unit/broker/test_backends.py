"""Which broker a setting's URL chooses, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from micro_ray.actors.backends import open_broker
from micro_ray.broker.memory import MemoryBroker
from micro_ray.broker.nats import NatsBroker
from micro_ray.cluster import _check
from micro_ray.errors import BadRequest, TooLarge
from micro_ray.settings import Settings, load
from tests.fixtures.brokers import says, up
from tests.fixtures.nats import PASSWORD, free_ports, server
from tests.fixtures.wait import eventually


def settings(**broker: Any) -> Settings:
    given = {f"broker.{name}": value for name, value in broker.items()}
    (port,) = free_ports(1)
    ports = {"api.port": port, "api.serve_port": 0, "proxy.port": 0}
    return load({}, {"state": "/tmp/none", **ports, **given})


async def test_memory_with_its_limits() -> None:
    async with open_broker(settings(max_message=10)) as broker:
        assert isinstance(broker, MemoryBroker)
        await broker.publish("a", b"x" * 10)
        with pytest.raises(TooLarge, match="10 allowed"):
            await broker.publish("a", b"x" * 11)


async def test_nats_with_a_choice_of_servers() -> None:
    """One of which is not there."""
    (port,) = free_ports(1)
    async with server() as one:
        url = f"nats://127.0.0.1:{port},{one.address}"
        async with open_broker(settings(url=url, prefix="acme.prod", patience=5)) as broker:
            assert isinstance(broker, NatsBroker)
            async with broker.subscribe("a") as messages:
                await broker.publish("a", b"1")
                message = await anext(messages)
                assert (message.topic, message.body) == ("a", b"1")


async def test_nats_that_is_not_there_does_not_hold_up_a_start() -> None:
    (port,) = free_ports(1)
    async with open_broker(settings(url=f"nats://127.0.0.1:{port}", patience=0)) as broker:
        assert await eventually(lambda: says(broker, f"127.0.0.1:{port}", "Connect call failed"))
        with pytest.raises(AssertionError):
            await eventually(lambda: up(broker), within=0.1)


@pytest.mark.parametrize(
    ("broker", "told"),
    [
        ({"url": "memory://x"}, "nothing follows"),
        ({"url": "memory:"}, "nothing follows"),
        ({"url": "redis://a"}, "'redis' is not nats or tls"),
        ({"url": f"nats://u:{PASSWORD}"}, "not like host:port"),
        ({"url": "tls://a", "tls_ca": "/nowhere.pem"}, "broker.tls_ca: /nowhere.pem"),
        ({"url": "nats://a", "tls_cert": "/nowhere.pem"}, "broker.tls_cert"),
        ({"url": "nats://a", "prefix": "a b"}, "broker.prefix"),
    ],
)
async def test_what_cannot_be(broker: dict[str, str], told: str) -> None:
    """Named before anything is started."""
    given = settings(**broker)
    with pytest.raises(BadRequest) as raised:
        async with open_broker(given):
            pass
    assert told in raised.value.detail
    assert PASSWORD not in raised.value.detail
    with pytest.raises(BadRequest) as raised:
        _check(given)
    assert told in raised.value.detail


def test_what_can_be(tmp_path: Path) -> None:
    for url in ("memory://", "nats://u:p@a,b", "tls://a"):
        _check(settings(url=url))
