"""What a namespace may keep in events, over each backend, and what is never refused."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray.auth import PLATFORM, Identity, Kind
from micro_ray.context import Context, use
from micro_ray.errors import BadRequest, TooLarge
from micro_ray.events import Events
from micro_ray.limits.gate import Gate
from micro_ray.limits.quota_events import QuotaEvents
from micro_ray.limits.rules import Rules, event_quota_of
from micro_ray.limits.tally import AGAIN, EVERY
from tests.fixtures.events import OPENERS
from tests.fixtures.nats import NatsServer, jetstream
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually


class World:
    """Two members over one backend, as two actors are over one database or one NATS."""

    def __init__(self, events: Events) -> None:
        self.now = 0.0
        self.events = events
        self.gate = Gate(kinds=())
        self.gate.follow("micro")
        self.members = [QuotaEvents(events, self.gate, clock=lambda: self.now) for _ in range(2)]

    def set(self, **quota: int) -> QuotaEvents:
        self.gate.rule("micro", Rules((), 1, None, event_quota_of({"events": quota})))
        return self.members[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def jet_server() -> AsyncIterator[NatsServer]:
    async with jetstream() as up:
        yield up


@pytest.fixture(params=["sqlite", "jetstream"])
async def world(request: pytest.FixtureRequest, jet_server: NatsServer) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="qe-") as folder:
        async with OPENERS[request.param](Path(folder), Clock(), jet_server) as events:
            world = World(events)
            yield world
            for member in world.members:
                await member.close()


async def test_events_bytes_and_topics_are_bounded(world: World) -> None:
    member = world.set(events=3)
    for topic in ("a", "a", "b"):
        await member.publish(topic, b"x")
    with pytest.raises(TooLarge) as raised:
        await member.publish("c", b"x")
    assert raised.value.detail == (
        "namespace micro may keep 3 events in events and keeps 3; delete topics, have them keep "
        "less (events retain), or have its quota raised (config limits.events)"
    )
    kept = (await member.usage()).bytes
    world.set(bytes=kept + 5000)
    world.now += AGAIN
    await member.publish("a", b"x" * 3000)
    with pytest.raises(TooLarge, match=rf"may keep {kept + 5000} bytes in events and keeps "):
        await member.publish("a", b"x" * 3000)
    world.set(topics=2)
    world.now += AGAIN
    await member.publish("a", b"x")
    with pytest.raises(TooLarge, match="may keep 2 topics in events and keeps 2"):
        await member.publish("c", b"x")
    assert [(t.name, t.events) for t in await member.topics()] == [("a", 4), ("b", 1)]
    await member.publish("c", b"x" * 5000, namespace="tenant")


async def test_what_would_make_a_topic_is_refused_and_nothing_else(world: World) -> None:
    member = world.set(topics=1, events=2)
    await member.publish("a", b"x")
    await member.publish("a", b"y")
    for attempt in (
        member.fetch("new", "g"),
        member.retain("new"),
        anext(member.consume("new", "g")),
    ):
        with pytest.raises(TooLarge, match="may keep 1 topics"):
            await attempt
    with pytest.raises(BadRequest):
        await member.fetch("no topic", "g")
    first, second = await member.fetch("a", "g", start="beginning", limit=2, retry_limit=0)
    assert await member.ack(first.token) == 1
    assert await member.progress(second.token) == 1
    assert await member.nack(second.token) == 1
    assert await member.requeue("a", "g") == 1
    async with contextlib.aclosing(member.consume("a", "other", start="beginning")) as given:
        assert (await anext(given)).event.payload == b"x"
    assert [event.payload async for event in member.replay("a")] == [b"x", b"y"]
    assert len(await member.read("a")) == 2
    assert await member.discard("a", "g") == 0
    assert await member.delete_group("a", "g")
    assert await member.delete("a")
    world.now += AGAIN
    await member.publish("new", b"x")


async def test_a_quota_of_topics_that_is_reached_hinders_nobody_who_has_one(world: World) -> None:
    """Many come at once, to a member that has not looked yet."""
    for topic in ("a", "b"):
        await world.events.publish(topic, b"")
    member = world.set(topics=2)
    await asyncio.gather(*(member.publish(topic, b"") for topic in ("a", "b") * 20))
    done = await asyncio.gather(
        *(member.publish(f"t{i}", b"") for i in range(5)), return_exceptions=True
    )
    assert all(isinstance(one, TooLarge) for one in done)
    assert (await member.usage()).topics == 2


async def test_what_was_taken_is_told_also_when_there_is_no_room(world: World) -> None:
    member = world.set(events=2)
    first = await member.publish("t", b"x", id="one")
    await member.publish("t", b"x", id="two")
    again = await member.publish("t", b"x", id="one")
    assert (again.sequence, again.duplicate) == (first.sequence, True)
    for id, topic in (("three", "t"), ("one", "other"), ("", "t")):
        with pytest.raises(TooLarge):
            await member.publish(topic, b"x", id=id)
    assert [topic.name for topic in await world.events.topics()] == ["t"]


async def test_publishes_that_come_together_do_not_pass_together(world: World) -> None:
    member = world.set(events=10)
    done = await asyncio.gather(
        *(member.publish("t", b"") for _ in range(50)), return_exceptions=True
    )
    assert sum(not isinstance(one, Exception) for one in done) == 10
    assert (await member.usage()).events == 10


async def test_others_are_counted_in_time(world: World) -> None:
    world.set(events=10)
    one, two = world.members
    await one.publish("t", b"")
    for _ in range(9):
        await two.publish("t", b"")
    await one.publish("t", b"")  # it has not counted again: that is the error
    world.now += EVERY
    with contextlib.suppress(TooLarge):
        await one.publish("t", b"")  # what is there is counted beside it

    async def refused() -> bool:
        try:
            await one.publish("t", b"")
        except TooLarge:
            return True
        return False

    await eventually(refused, within=PROMPT)


async def test_what_the_platform_publishes_is_counted_and_not_refused(world: World) -> None:
    member = world.set(events=1, topics=1)
    own = Identity(id="auth", kind=Kind.SERVICE, scopes=(PLATFORM,))
    with use(Context(identity=own)):
        for _ in range(2):
            await member.publish("auth.audit", b"")
    with pytest.raises(TooLarge):
        await member.publish("t", b"")
    other = Identity(id="x", kind=Kind.SERVICE)
    with use(Context(identity=other)), pytest.raises(TooLarge):
        await member.publish("auth.audit", b"")


async def test_without_a_quota_nothing_is_counted(world: World) -> None:
    member = world.set()
    await member.publish("t", b"x" * 5000)
    await member.fetch("t", "g")
    assert len(member._tallies) == len(member._listed) == 0
