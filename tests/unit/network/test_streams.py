"""Streaming calls through the network."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from micro_ray.errors import Cancelled, MicroError, NotFound, Timeout
from micro_ray.network import Broken, Refused, Stream
from micro_ray.network.network import Network
from tests.fixtures.wait import eventually
from tests.unit.network.conftest import Fleet, who


async def count(network: Network, to: int = 3, **options: object) -> Stream:
    stream = await network.open("greeter", "Greeter.Count", **options)  # type: ignore[arg-type]
    await stream.send(b'{"to":%d}' % to)
    await stream.end()
    return stream


async def test_messages_come_and_end(fleet: Fleet) -> None:
    await fleet.spot("a")
    network = fleet.network()
    async with await count(network) as stream:
        assert [message async for message in stream] == [b"0", b"1", b"2"]
        assert await stream.receive() is None
    (status,) = network.nodes()
    assert (status.calls, status.errors, status.in_flight, status.latency) == (1, 0, 0, 0.0)


async def test_opening_avoids_what_is_not_there(fleet: Fleet) -> None:
    fleet.nobody("dead")
    await fleet.spot("a")
    network = fleet.network()
    for _ in range(10):
        async with await count(network) as stream:
            assert len([message async for message in stream]) == 3


async def test_a_stream_counts_as_load_while_it_is_open(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    a.hold.clear()
    b.hold.clear()
    network = fleet.network()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(await count(network))
        assert [status.in_flight for status in network.nodes()] == [10, 10]
        assert len(fleet.dialer.dialed) == 2
    await eventually(lambda: [s.in_flight for s in network.nodes()] == [0, 0])
    await eventually(lambda: a.endpoints.in_flight == b.endpoints.in_flight == 0)


async def test_leaving_cancels_at_the_node(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    async with await count(network, 10**9) as stream:
        assert await stream.receive() == b"0"
        assert spot.endpoints.in_flight == 1
    await eventually(lambda: spot.endpoints.in_flight == 0)


async def test_without_a_deadline_unless_one_is_given(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    spot.hold.clear()
    network = fleet.network(timeout=0.05)  # of unary calls
    stream = await count(network)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.receive(), 0.2)
    spot.hold.set()
    assert [message async for message in stream] == [b"0", b"1", b"2"]
    spot.hold.clear()
    stream = await count(network, timeout=0.1)
    with pytest.raises(Timeout):
        await stream.receive()
    spot.hold.set()


async def test_what_breaks_is_told_to_who_reads(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    spot.hold.clear()
    stream = await count(network)
    await eventually(lambda: spot.started)
    spot.cut()
    with pytest.raises(Broken):
        await stream.receive()
    spot.hold.set()


async def test_errors_of_the_service(fleet: Fleet) -> None:
    await fleet.spot("a")
    network = fleet.network()
    stream = await network.open("greeter", "Greeter.Cuont")
    with pytest.raises(NotFound, match=r"Greeter\.Count"):
        await stream.receive()


async def test_a_refused_stream_says_that_nothing_was_done(fleet: Fleet) -> None:
    """It was open when the refusal came: its messages may be gone, so it is the caller's to make
    it anew."""
    spot = await fleet.spot("a")
    spot.endpoints._max = 0
    stream = await count(fleet.network())
    with pytest.raises(Refused):
        await stream.receive()
    assert not spot.started


async def test_opening_resets_no_breaker(fleet: Fleet) -> None:
    """It is no answer yet: a node that takes streams and answers nothing is not well by that."""
    a, _ = await fleet.spots("a", "b")
    network = fleet.network()
    await asyncio.gather(*(who(network) for _ in range(10)))
    a.hold.clear()
    for _ in range(100):
        with contextlib.suppress(Timeout):
            await who(network, timeout=0.1)
        async with await count(network, 0):
            pass
        if any(status.out for status in network.nodes()):
            break
    assert [status.id for status in network.nodes() if status.out] == ["a"]
    a.hold.set()


async def test_closing_the_network_ends_streams(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    stream = await count(network, 10**9)
    assert await stream.receive() == b"0"
    await network.close()

    async def drain() -> None:
        while await stream.receive() is not None:
            pass

    with pytest.raises(Cancelled):
        await asyncio.wait_for(drain(), 5)
    with pytest.raises(MicroError):
        await stream.send(b"{}")
    await eventually(lambda: spot.endpoints.in_flight == 0)
