"""service.events: handlers, publishing, streams by hand; and the same over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from micro_ray import Service
from micro_ray.errors import BadRequest, Unavailable
from micro_ray.sdk.events import Message
from micro_ray.sdk.testing import Here
from tests.fixtures.wait import eventually


async def test_handlers_share_and_settle(here: Here) -> None:
    """Two replicas of a service: each event is handled by one of them."""
    seen: list[tuple[str, Any]] = []

    def replica(name: str) -> Service:
        service = Service("billing")

        @service.events.on("orders")
        async def handle(message: Message) -> None:
            seen.append((name, message.json()["n"]))

        return service

    publisher = Service("shop")
    await here.serve(publisher)
    for n in range(5):
        await publisher.events.publish("orders", {"n": n})
    await here.serve(replica("a"), "billing-a")
    await here.serve(replica("b"), "billing-b")
    for n in range(5, 40):
        taken = await publisher.events.publish("orders", {"n": n})
        assert not taken.duplicate
    await eventually(lambda: len(seen) >= 40)
    assert sorted(n for _, n in seen) == [*range(40)]

    async def settled() -> bool:
        (group,) = await publisher.events.remote.groups("orders")
        return (group.name, group.pending, group.waiting) == ("billing", 0, 0)

    await eventually(settled)


async def test_what_a_handler_raises_of_is_given_again_and_then_dead(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("fragile")
    attempts: list[tuple[bytes, int]] = []

    @service.events.on("t", retry_limit=2, backoff=0.01)
    async def handle(message: Message) -> None:
        attempts.append((message.event.payload, message.attempt))
        if message.event.payload == b"bad":
            raise ValueError("not this one")

    await here.serve(service)
    for payload in ("bad", b"good"):
        await service.events.publish("t", payload)

    async def dead() -> bool:
        letters = await service.events.remote.dead("t", "fragile")
        return [(d.event.payload, d.attempts) for d in letters] == [(b"bad", 3)]

    await eventually(dead)
    assert sorted(attempts) == [(b"bad", 1), (b"bad", 2), (b"bad", 3), (b"good", 1)]
    assert "not this one" in caplog.text


async def test_a_slow_handler_holds_its_event(here: Here) -> None:
    service = Service("slow")
    begun: list[int] = []
    done = asyncio.Event()

    @service.events.on("t", ack_wait=0.3)
    async def handle(message: Message) -> None:
        begun.append(message.attempt)
        await done.wait()

    await here.serve(service)
    await service.events.publish("t", b"")
    await eventually(lambda: begun)
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.0
    other = service.events.remote
    while loop.time() < end:  # nobody else gets it meanwhile
        assert await other.fetch("t", "slow", wait=0.1, ack_wait=0.3) == []
    done.set()

    async def settled() -> bool:
        return (await other.groups("t"))[0].pending == 0

    await eventually(settled)
    assert begun == [1]


async def test_a_stream_by_hand(here: Here) -> None:
    service = Service("hand")
    with pytest.raises(Unavailable, match="started"):
        await service.events.publish("t", b"")
    await here.serve(service)
    for n in range(3):
        await service.events.publish("t", str(n), metadata={"n": str(n)})
    taken = service.events.consume("t", "g", start="beginning")
    async with contextlib.aclosing(taken) as messages:  # type: ignore[type-var]
        first = await anext(messages)
        assert (first.event.payload, first.event.metadata) == (b"0", {"n": "0"})
        assert await first.progress()
        assert await first.nack(0)
        assert not await first.ack()
        found = [await anext(messages) for _ in range(3)]
    assert sorted(m.event.sequence for m in found) == [1, 2, 3]
    bad = service.events.consume("a/b", "g")
    with pytest.raises(BadRequest, match="topic"):
        await anext(bad)
    with pytest.raises(BadRequest, match="concurrency"):
        service.events.on("t", concurrency=0)
    with pytest.raises(BadRequest, match="not as expected"):
        await found[0].__class__(service.events.remote, _delivery(b"{")).json()


def _delivery(payload: bytes) -> Any:
    from micro_ray.events import Delivery, Event

    event = Event(topic="t", sequence=1, id="x", time=0.0, payload=payload)
    return Delivery(event=event, token="1.1.1")


async def test_any_json_is_published(here: Here) -> None:
    ask = here.client.call
    for value in ({"a": [1, None]}, 5, [], None, True):
        await ask("events", "Events.Publish", {"topic": "t", "payload": value})
    found = (await ask("events", "Events.Read", {"topic": "t"}))["events"]
    assert [json.loads(event["payload"]) for event in found] == [
        {"a": [1, None]}, 5, [], None, True,
    ]  # fmt: skip
    with pytest.raises(BadRequest, match="encoding"):
        await ask("events", "Events.Publish", {"topic": "t", "payload": "x", "encoding": "rot13"})
    with pytest.raises(BadRequest, match="base64"):
        await ask("events", "Events.Publish", {"topic": "t", "payload": "?", "encoding": "base64"})


async def test_a_stream_that_acknowledges_by_itself(here: Here) -> None:
    """As a client over HTTP takes it: events are settled as they are sent."""
    ask = here.client.call
    for n in range(3):
        await ask("events", "Events.Publish", {"topic": "t", "payload": str(n)})
    request = {"topic": "t", "group": "g", "start": "beginning"}
    answers = here.client.stream("events", "Events.Consume", request)
    async with contextlib.aclosing(answers):  # type: ignore[type-var]
        assert [(await anext(answers))["payload"] for _ in range(3)] == ["0", "1", "2"]

        async def settled() -> bool:
            (group,) = (await ask("events", "Events.Groups", {"topic": "t"}))["groups"]
            return bool(group["pending"] == 0)

        await eventually(settled)
