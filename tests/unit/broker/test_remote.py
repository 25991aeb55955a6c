"""The broker as services have it: over frames, by name, from any member."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest

from micro_ray import Service
from micro_ray.broker import Message
from micro_ray.broker.memory import MemoryBroker
from micro_ray.broker.nats import NatsBroker
from micro_ray.errors import BadRequest, Unavailable
from micro_ray.nats_url import parse
from micro_ray.network.network import Network
from micro_ray.router import Delta, Route
from micro_ray.router.table import Table
from micro_ray.sdk.testing import Here
from micro_ray.wire import broker as face
from micro_ray.wire.broker import RemoteBroker
from micro_ray.wire.dialer import WireDialer
from tests.fixtures.brokers import bodies, up
from tests.fixtures.lines import Place
from tests.fixtures.nats import free_ports, server
from tests.fixtures.wait import eventually


async def test_a_service_publishes_and_listens(here: Here) -> None:
    service = Service("orders")
    seen: asyncio.Queue[Message] = asyncio.Queue()

    @service.on_start
    async def listen() -> None:
        async def listening() -> None:
            async with service.broker.subscribe("orders.*", queue="orders") as messages:
                ready.set()
                async for message in messages:
                    await seen.put(message)

        ready = asyncio.Event()
        tasks.append(asyncio.create_task(listening()))
        await ready.wait()

    @service.endpoint
    async def call(what: str) -> None:
        await service.broker.publish(f"orders.{what}", what.encode(), headers={"by": "orders"})

    tasks: list[asyncio.Task[None]] = []
    await here.serve(service)
    await here.client.call("orders", "call", {"what": "paid"})
    message = await asyncio.wait_for(seen.get(), 10)
    assert message == Message(topic="orders.paid", body=b"paid", headers={"by": "orders"})
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_before_it_has_started() -> None:
    with pytest.raises(Unavailable):
        Service("orders").broker  # noqa: B018 - that it raises is the point


async def test_a_namespace_is_the_callers(here: Here) -> None:
    """Whatever is said in the request."""
    async with here.broker.subscribe("a", namespace="other") as others:
        with contextlib.suppress(BadRequest):
            request = {"topic": "a", "body": "x", "namespace": "other"}
            await here.client.call("broker", "Broker.Publish", request)
        await here.broker.publish("a", b"mine", namespace="other")
        assert await bodies(others, 1) == [b"mine"]


class Lives:
    """Members of a broker at fixed sockets, each with its own life."""

    def __init__(self, folder: Path, count: int) -> None:
        self.brokers: list[MemoryBroker] = []
        self.places = [Place(folder / f"b{number}.sock", self._make) for number in range(count)]
        table = Table()
        routes = tuple(
            Route(id=f"broker-{n}", namespace="micro", service="broker", addresses=(p.address,))
            for n, p in enumerate(self.places)
        )
        table.apply(Delta(epoch="1", revision=1, full=True, routes=routes))
        self.network = Network(table, WireDialer())

    def _make(self) -> object:
        self.brokers.append(MemoryBroker())
        return face.endpoints(self.brokers[-1])


async def test_a_subscription_outlives_the_member_it_is_at() -> None:
    with tempfile.TemporaryDirectory(prefix="bl-") as folder:
        lives = Lives(Path(folder), 1)
        (place,) = lives.places
        await place.open()
        try:
            broker = RemoteBroker(lives.network)
            async with broker.subscribe("a") as messages:
                for life in range(3):
                    reading = asyncio.ensure_future(anext(messages))
                    # Published until it is in force again: there is no telling from here.
                    while not reading.done():
                        await lives.brokers[-1].publish("a", b"%d" % life)
                        await asyncio.wait([reading], timeout=0.01)
                    assert reading.result().body == b"%d" % life
                    await place.close()
                    await place.open()
                waiting = asyncio.ensure_future(anext(messages))
                await place.close()
                await asyncio.sleep(0)
            with pytest.raises(StopAsyncIteration):  # it is closed while it tries to come back
                await asyncio.wait_for(waiting, 10)
        finally:
            await lives.network.close()
            await place.close()


async def test_a_broker_whose_nats_is_away_is_unhealthy() -> None:
    port = free_ports(1)[0]
    async with NatsBroker(parse(f"nats://127.0.0.1:{port}"), patience=0) as backend:
        with tempfile.TemporaryDirectory(prefix="bh-") as folder:
            lives = Lives(Path(folder), 1)
            place = Place(Path(folder) / "b0.sock", lambda: face.endpoints(backend))
            async with place:
                remote = RemoteBroker(lives.network)
                with pytest.raises(Unavailable, match="waiting for NATS at 127"):
                    await remote.check()
                with pytest.raises(Unavailable, match="waiting for NATS at 127"):
                    await remote.publish("a", b"")
                with pytest.raises(Unavailable, match="waiting for NATS at 127"):
                    await remote.subscribe("a").open()
                await lives.network.close()


async def test_members_on_the_same_servers_are_one_broker() -> None:
    """A pool: who publishes at one is heard at the other, and groups span both."""
    async with (
        server() as one,
        NatsBroker(parse(f"nats://{one.address}")) as first,
        NatsBroker(parse(f"nats://{one.address}")) as second,
    ):
        for broker in (first, second):
            await eventually(lambda broker=broker: up(broker))  # type: ignore[misc]
        async with (
            first.subscribe("a") as alone,
            first.subscribe("a", queue="g") as here,
            second.subscribe("a", queue="g") as there,
        ):
            for number in range(100):
                await second.publish("a", b"%d" % number)
            assert await bodies(alone, 100) == [b"%d" % number for number in range(100)]
            found: list[int] = []

            async def gather(messages: object) -> None:
                async for message in messages:  # type: ignore[attr-defined]
                    found.append(int(message.body))

            tasks = [asyncio.create_task(gather(messages)) for messages in (here, there)]
            await eventually(lambda: sorted(found) == list(range(100)))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
