"""Three servers that keep every stream three times, one of which is killed or stopped: publishing
and consuming go on. The longest gap is printed (``pytest -s``)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from micro_ray.errors import MicroError
from micro_ray.events.jetstream import JetStreamEvents
from micro_ray.nats_url import parse
from tests.fixtures.nats import Cluster, NatsServer, cluster
from tests.fixtures.wait import eventually

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Cluster]:
    async with cluster(streams=True) as up:
        yield up


@asynccontextmanager
async def on(three: Cluster, prefix: str) -> AsyncIterator[JetStreamEvents]:
    """A backend that is up, on a cluster that has found its leader."""
    place = parse("nats://" + ",".join(three.addresses))
    async with JetStreamEvents(place, prefix=prefix, patience=5) as events:

        async def up() -> bool:
            return bool((await events.publish("first", b"", id="x")).sequence)

        await eventually(up, within=40)
        yield events


async def leader(events: JetStreamEvents, three: Cluster, stream: str) -> NatsServer:
    async def named() -> Any:
        info = await events._api.info(stream)
        return info and info["cluster"].get("leader")

    name = await eventually(named, within=20)
    return three.members[int(name[1:])]


class Flow:
    """Events that are published one after the other, and what a group is given of them."""

    def __init__(self, events: JetStreamEvents) -> None:
        self._events = events
        self.taken: list[int] = []
        self.given: list[int] = []
        self.times: list[float] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._publish()), asyncio.create_task(self._consume())]
        try:
            await eventually(lambda: len(self.given) > 20, within=20)
            yield
            await eventually(lambda: {*self.taken} <= {*self.given}, within=20)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self) -> None:
        number = 0
        while True:
            try:
                published = await self._events.publish("t", b"", id=str(number))
            except MicroError:
                continue
            self.taken.append(published.sequence)
            number += 1
            await asyncio.sleep(0.01)

    async def _consume(self) -> None:
        while True:
            with contextlib.suppress(MicroError):
                taken = self._events.consume("t", "g", start="beginning", ack_wait=3)
                async with contextlib.aclosing(taken) as given:  # type: ignore[type-var]
                    async for delivery in given:
                        self.given.append(delivery.event.sequence)
                        self.times.append(time.monotonic())

    async def more(self, count: int) -> None:
        wanted = len(self.given) + count
        await eventually(lambda: len(self.given) >= wanted, within=40)

    def check(self) -> float:
        """Nothing is lost and nothing taken twice; the longest gap."""
        assert self.taken == [*range(1, len(self.taken) + 1)]
        first = [*dict.fromkeys(self.given)]
        assert first == sorted(first), "an event came before an older one"
        assert len(self.given) - len(first) <= 32
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@pytest.mark.parametrize("what", ["topic", "groups"])
async def test_kill_of_a_leader(three: Cluster, what: str) -> None:
    async with on(three, what) as events:
        flow = Flow(events)
        async with flow.running():
            for stream in (f"{what}+micro+t", f"{what}+micro"):
                info = await events._api.info(stream)
                assert info is not None
                assert info["config"]["num_replicas"] == 3
            stream = f"{what}+micro+t" if what == "topic" else f"{what}+micro"
            victim = await leader(events, three, stream)
            await victim.kill()
            await flow.more(50)
            await victim.start()
            await flow.more(50)
        print(f"\nkill of the leader of the {what}: longest gap {flow.check():.1f} s")
        replayed = [event.sequence async for event in events.replay("t")]
        # The publisher may have been ended while its last one was on its way.
        assert replayed[: len(flow.taken)] == flow.taken
        assert len(replayed) <= len(flow.taken) + 1


async def test_a_member_that_is_stopped(three: Cluster) -> None:
    async with on(three, "stop") as events:
        flow = Flow(events)
        async with flow.running():
            victim = await leader(events, three, "stop+micro+t")
            victim.freeze()
            try:
                await flow.more(50)
            finally:
                victim.thaw()
            await flow.more(50)
        print(f"\nstop of the leader of the topic: longest gap {flow.check():.1f} s")


async def test_all_gone_and_back(three: Cluster) -> None:
    async with on(three, "all") as events:
        flow = Flow(events)
        async with flow.running():
            for member in three.members:
                await member.kill()
            for member in three.members:
                await member.start()
            await flow.more(50)
        print(f"\nall killed and started again: longest gap {flow.check():.1f} s")
