"""Three servers of which one is killed, stopped, or all are gone: publishing and subscriptions go
on. The longest gap is printed (``pytest -s``)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from micro_ray.broker.nats import NatsBroker
from micro_ray.errors import Unavailable
from micro_ray.nats_url import parse
from tests.fixtures.brokers import bodies, says, up
from tests.fixtures.nats import Cluster, NatsServer
from tests.fixtures.wait import PROMPT, eventually


def on(three: Cluster, broker: NatsBroker) -> NatsServer:
    """The member on which it is."""
    client = broker._connection.client
    assert client is not None
    assert client.connected_url is not None
    return three.at(client.connected_url.netloc)


class Feed:
    """Numbers that are published every few milliseconds, and when they came."""

    def __init__(self, broker: NatsBroker, source: NatsBroker) -> None:
        self._broker = broker
        self._source = source
        self.numbers: list[int] = []
        self.times: list[float] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Feed]:
        async with self._broker.subscribe("feed.*") as messages:
            tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._read(messages))]
            try:
                await eventually(lambda: self.numbers, within=20)
                yield self
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> None:
        number = 0
        while True:
            with contextlib.suppress(Unavailable):
                await self._source.publish("feed.x", b"%d" % number)
            number += 1
            await asyncio.sleep(0.005)

    async def _read(self, messages: object) -> None:
        async for message in messages:  # type: ignore[attr-defined]
            self.numbers.append(int(message.body))
            self.times.append(time.monotonic())

    async def more(self, count: int, within: float) -> None:
        wanted = len(self.numbers) + count
        await eventually(lambda: len(self.numbers) >= wanted, within=within)

    def gap(self) -> float:
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@asynccontextmanager
async def two(three: Cluster, *, together: bool) -> AsyncIterator[tuple[NatsBroker, NatsBroker]]:
    """A broker that listens, on the first member, and one that sends, there or on the second."""
    first, second = three.members[:2]
    async with (
        NatsBroker(parse(f"nats://{first.address}"), patience=20) as broker,
        NatsBroker(parse(f"nats://{(first if together else second).address}")) as source,
    ):
        for one in (broker, source):
            await eventually(lambda one=one: up(one), within=20)  # type: ignore[misc]
            # Each has learnt of the others from the one it is on.
            await eventually(lambda one=one: len(one._connection.client.servers) == 3, within=20)  # type: ignore[misc,union-attr]
        yield broker, source


async def test_kill_of_the_member_one_is_on(three: Cluster) -> None:
    """Who listens there, and who sends there."""
    async with two(three, together=True) as (broker, source):
        async with Feed(broker, source).running() as feed:
            await feed.more(20, 20)
            victim = on(three, broker)
            await victim.kill()
            await feed.more(100, 20)
            assert on(three, broker) is not victim
            assert on(three, source) is not victim
        assert feed.numbers == sorted(set(feed.numbers))
        print(f"\nkill of the member: longest gap {feed.gap() * 1e3:.0f} ms")
        assert feed.gap() < PROMPT


async def test_a_member_that_is_stopped(three: Cluster) -> None:
    """Its sockets stay open and take nothing; pings find out."""
    async with two(three, together=False) as (broker, source):
        async with Feed(broker, source).running() as feed:
            victim = on(three, broker)
            victim.freeze()
            # More than its sockets take: a close in good order would wait for it.
            for _ in range(8):
                with contextlib.suppress(Unavailable):
                    await broker.publish("other", bytes(900_000))
            await feed.more(100, 30)
            assert on(three, broker) is not victim
        print(f"\nstop of the member: longest gap {feed.gap():.1f} s")
        assert feed.gap() < 2 * PROMPT


async def test_all_gone_and_back(three: Cluster) -> None:
    first = three.members[0]
    async with NatsBroker(parse("nats://" + ",".join(three.addresses)), patience=0.2) as broker:
        await eventually(lambda: up(broker), within=20)
        async with broker.subscribe("a") as messages, broker.subscribe("a", queue="g") as shared:
            for member in three.members:
                await member.kill()
            assert await eventually(lambda: says(broker, "at 127.0.0.1"))
            with pytest.raises(Unavailable):
                await broker.subscribe("b").open()
            # What is published meanwhile waits here, up to a limit, and is never held beyond it.
            await broker.publish("a", b"held")
            for _ in range(4):
                await broker.publish("b", bytes(500_000))
            with pytest.raises(Unavailable):
                await broker.publish("b", bytes(500_000))
            await first.start()
            await eventually(lambda: up(broker), within=20)
            await broker.publish("a", b"again")
            assert (await bodies(messages, 2))[-1] == b"again"
            assert (await bodies(shared, 2))[-1] == b"again"
