"""A registration that lasts as long as its stream: the registry's side, by messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from micro_ray.errors import BadRequest, MicroError, TooManyRequests, Unavailable
from micro_ray.network import Call, Peer, Stream
from micro_ray.registry import DEFAULT_TTL, Instance
from micro_ray.registry.memory import Capacity, MemoryRegistry
from micro_ray.wire import registry as face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.remote import decode, encode
from micro_ray.wire.schema import MSGPACK
from micro_ray.wire.server import Server
from tests.fixtures.registries import Clock, instance
from tests.fixtures.wait import eventually


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def registry(clock: Clock) -> AsyncIterator[MemoryRegistry]:
    registry = MemoryRegistry(clock=clock, capacity=Capacity(nodes=3))
    yield registry
    await registry.close()


Connect = Callable[[], Awaitable[Peer]]


@pytest.fixture
async def connect(registry: MemoryRegistry) -> AsyncIterator[Connect]:
    with TemporaryDirectory(prefix="ra-") as folder:
        async with Server(face.endpoints(registry).handler) as server:
            address = await server.listen(f"unix:{Path(folder)}/r.sock")
            peers: list[Peer] = []

            async def connect() -> Peer:
                peers.append(await WireDialer().dial(address))
                return peers[-1]

            yield connect
            for peer in peers:
                await peer.close()


async def attach(peer: Peer) -> Stream:
    return await peer.open(Call(service="registry", endpoint="Registry.Attach", content=MSGPACK))


async def say(stream: Stream, **message: Any) -> dict[str, Any]:
    await stream.send(encode(message))
    answer = await stream.receive()
    assert answer is not None
    return decode(answer, dict, "test")


async def ids(registry: MemoryRegistry) -> list[str]:
    return [i.node.id for i in (await registry.snapshot()).instances]


def gone(registry: MemoryRegistry, *left: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await ids(registry) == list(left)

    return check


@pytest.mark.parametrize("end", ["cancel", "end", "close"])
async def test_a_node_is_there_as_long_as_its_stream(
    registry: MemoryRegistry, connect: Connect, end: str
) -> None:
    peer, other = await connect(), await connect()
    stream, second = await attach(peer), await attach(other)
    assert await say(stream, instance=instance(node="a")) == {"node": "a"}
    assert await say(second, instance=instance(node="b")) == {"node": "b"}
    assert await ids(registry) == ["a", "b"]
    if end == "cancel":
        stream.cancel()
    elif end == "end":
        await stream.end()
        assert await stream.receive() is None
    else:
        await peer.close()
    await eventually(gone(registry, "b"))
    second.cancel()


async def test_an_empty_message_renews(
    registry: MemoryRegistry, connect: Connect, clock: Clock
) -> None:
    stream = await attach(await connect())
    await say(stream, instance=instance(), ttl=5)
    for _ in range(4):
        clock.now += 4
        assert await say(stream) == {"node": "n1"}
    assert (await registry.snapshot()).revision == 1
    registry.expire()
    assert await ids(registry) == ["n1"]
    clock.now += 5.1
    registry.expire()
    assert await ids(registry) == []
    # What was silent for too long and comes back is registered again by its next sign of life.
    assert await say(stream) == {"node": "n1"}
    assert await ids(registry) == ["n1"]


async def test_a_node_may_change_what_it_registered(
    registry: MemoryRegistry, connect: Connect
) -> None:
    stream = await attach(await connect())
    await say(stream, instance=instance())
    await say(stream, instance=instance(weight=5))
    await say(stream)  # renews what was said last
    assert (await registry.snapshot()).instances == (instance(weight=5),)
    assert (await registry.snapshot()).revision == 2
    stream.cancel()
    await eventually(gone(registry))


async def test_the_end_of_an_older_stream_leaves_the_newer_alone(
    registry: MemoryRegistry, connect: Connect
) -> None:
    """A node that attached again over a new connection, before the old one was found broken."""
    old_peer = await connect()
    old, new = await attach(old_peer), await attach(await connect())
    await say(old, instance=instance())
    await say(new, instance=instance())
    other = await attach(old_peer)
    await say(other, instance=instance(node="other"))
    await old_peer.close()
    await eventually(gone(registry, "n1"))  # "other" has gone with the connection, n1 has not
    assert await say(new) == {"node": "n1"}
    new.cancel()
    await eventually(gone(registry))


async def test_the_first_message_must_say_who(connect: Connect) -> None:
    stream = await attach(await connect())
    with pytest.raises(BadRequest, match="the first message must have an instance"):
        await say(stream)


@pytest.mark.parametrize("other", [instance(node="n2"), instance(namespace="other")])
async def test_a_stream_is_of_one_node(
    registry: MemoryRegistry, connect: Connect, other: Instance
) -> None:
    stream = await attach(await connect())
    await say(stream, instance=instance())
    with pytest.raises(BadRequest, match="this stream is of the node n1"):
        await say(stream, instance=other)
    await eventually(gone(registry))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"instance": instance(node="a b")}, BadRequest),
        ({"instance": instance(), "ttl": 0.1}, BadRequest),
        ({"instance": {"service": "x"}}, BadRequest),
        ({"instance": 5}, BadRequest),
    ],
)
async def test_what_is_refused_ends_the_stream(
    registry: MemoryRegistry, connect: Connect, message: dict[str, Any], error: type[MicroError]
) -> None:
    stream = await attach(await connect())
    with pytest.raises(error):
        await say(stream, **message)
    assert await ids(registry) == []


async def test_a_full_registry_keeps_what_it_has(
    registry: MemoryRegistry, connect: Connect
) -> None:
    peer = await connect()
    streams = [await attach(peer) for _ in range(4)]
    for number, stream in enumerate(streams[:3]):
        await say(stream, instance=instance(node=f"n{number}"))
    with pytest.raises(TooManyRequests, match="all 3 places"):
        await say(streams[3], instance=instance(node="n3"))
    assert await ids(registry) == ["n0", "n1", "n2"]
    streams[0].cancel()
    await eventually(gone(registry, "n1", "n2"))
    last = await attach(peer)
    await say(last, instance=instance(node="n3"))


async def test_a_refused_change_ends_what_was_registered(
    registry: MemoryRegistry, connect: Connect
) -> None:
    stream = await attach(await connect())
    await say(stream, instance=instance())
    with pytest.raises(BadRequest, match=r"node\.weight"):
        await say(stream, instance=instance(weight=-1))
    await eventually(gone(registry))


class Distant(MemoryRegistry):
    """What is behind it is out of its reach at times."""

    away = False

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        if self.away:
            raise Unavailable("registry", "waiting for what is behind it")
        await super().register(instance, ttl=ttl, holder=holder)


async def test_a_registry_that_is_away_takes_nobody_out() -> None:
    """The stream ends, since nothing was renewed; the node lives, and stays for its TTL."""
    async with Distant() as registry, Server(face.endpoints(registry).handler) as server:
        with TemporaryDirectory(prefix="ra-") as folder:
            peer = await WireDialer().dial(await server.listen(f"unix:{folder}/r.sock"))
            stream = await attach(peer)
            await say(stream, instance=instance())
            registry.away = True
            with pytest.raises(Unavailable, match="waiting for"):
                await say(stream)
            registry.away = False
            again = await attach(peer)
            await say(again, instance=instance())
            assert (await registry.snapshot()).revision == 1  # it never left
            await peer.close()
