"""What every broker does: publish, subscribe, wildcards, groups, namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from micro_ray.broker import Broker, Message, Subscription, checks
from micro_ray.errors import BadRequest, Unavailable
from tests.fixtures.brokers import Subject, bodies, take
from tests.fixtures.wait import eventually


async def test_a_message_arrives_as_it_was_sent(broker: Broker) -> None:
    headers = {"content-type": "text/plain", "X_a.b-1": "żółw \u2028 漢", "empty": ""}
    sent = [b"", b"text", "żółw".encode(), bytes(range(256)), b"\r\nPUB x 0\r\n\r\n"]
    async with broker.subscribe("orders.eu") as messages:
        for body in sent:
            await broker.publish("orders.eu", body, headers=headers)
        await broker.publish("orders.eu", b"bare")
        found = await take(messages, len(sent) + 1)
    assert found[:-1] == [Message(topic="orders.eu", body=b, headers=headers) for b in sent]
    assert found[-1] == Message(topic="orders.eu", body=b"bare")


async def test_a_message_that_finds_nobody_is_gone(broker: Broker) -> None:
    await broker.publish("a", b"early")
    async with broker.subscribe("a") as messages:
        await broker.publish("a", b"now")
        assert await bodies(messages, 1) == [b"now"]
    await broker.publish("a", b"late")
    async with broker.subscribe("a") as messages:
        await broker.publish("a", b"again")
        assert await bodies(messages, 1) == [b"again"]


async def test_in_order_and_each_once(broker: Broker) -> None:
    async with broker.subscribe("a") as messages, broker.subscribe("a") as others:
        for number in range(400):
            await broker.publish("a", b"%d" % number)
        expected = [b"%d" % number for number in range(400)]
        assert await bodies(messages, 400) == expected
        assert await bodies(others, 400) == expected


PATTERNS = ["a", "a.b", "a.*", "*.b", "*", "*.*", ">", "a.>", "a.b.>", "a.*.c", "*.>", "b.>", "A.b"]
TOPICS = ["a", "b", "a.b", "a.c", "a.b.c", "a.c.c", "a.b.c.d", "b.b", "A.b"]
#: What each pattern lets through of the above, written out.
MATCHES = {
    "a": ["a"],
    "a.b": ["a.b"],
    "a.*": ["a.b", "a.c"],
    "*.b": ["a.b", "b.b", "A.b"],
    "*": ["a", "b"],
    "*.*": ["a.b", "a.c", "b.b", "A.b"],
    ">": TOPICS,
    "a.>": ["a.b", "a.c", "a.b.c", "a.c.c", "a.b.c.d"],
    "a.b.>": ["a.b.c", "a.b.c.d"],
    "a.*.c": ["a.b.c", "a.c.c"],
    "*.>": ["a.b", "a.c", "a.b.c", "a.c.c", "a.b.c.d", "b.b", "A.b"],
    "b.>": ["b.b"],
    "A.b": ["A.b"],
}


async def test_wildcards(broker: Broker) -> None:
    async with contextlib.AsyncExitStack() as stack:
        subscribed = {
            pattern: await stack.enter_async_context(broker.subscribe(pattern))
            for pattern in PATTERNS
        }
        for topic in TOPICS:
            await broker.publish(topic, b"")
        for pattern, messages in subscribed.items():
            found = await take(messages, len(MATCHES[pattern]))
            assert [message.topic for message in found] == MATCHES[pattern], pattern


def test_matching_is_as_written_out() -> None:
    for pattern, topic in itertools.product(PATTERNS, TOPICS):
        matched = checks.matches(pattern.split("."), topic.split("."))
        assert matched == (topic in MATCHES[pattern]), (pattern, topic)


async def test_a_group_shares(broker: Broker) -> None:
    """Each message goes to one member, and all of them get some."""
    seen: list[list[bytes]] = [[], [], []]

    async def member(messages: Subscription, mine: list[bytes]) -> None:
        async for message in messages:
            mine.append(message.body)

    async with contextlib.AsyncExitStack() as stack:
        members = [await stack.enter_async_context(broker.subscribe("a", queue="g")) for _ in seen]
        tasks = [asyncio.create_task(member(*pair)) for pair in zip(members, seen, strict=True)]
        alone = await stack.enter_async_context(broker.subscribe("a"))
        sent = [b"%d" % number for number in range(300)]
        for body in sent:
            await broker.publish("a", body)
        assert await bodies(alone, 300) == sent
        await eventually(lambda: sum(map(len, seen)) == 300)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(itertools.chain(*seen)) == sorted(sent)
    assert all(len(mine) > 30 for mine in seen)


async def test_groups_do_not_collide(broker: Broker) -> None:
    """Another group gets its own, and one group is one whatever its members' patterns."""
    async with (
        broker.subscribe("a.b", queue="g") as one,
        broker.subscribe("a.*", queue="g") as two,
        broker.subscribe("a.b", queue="h") as other,
    ):
        for number in range(100):
            await broker.publish("a.b", b"%d" % number)
        assert await bodies(other, 100) == [b"%d" % number for number in range(100)]
        await broker.publish("a.b.end", b"")

        found: list[bytes] = []

        async def gather(messages: Subscription) -> None:
            async for message in messages:
                found.append(message.body)

        tasks = [asyncio.create_task(gather(messages)) for messages in (one, two)]
        await eventually(lambda: len(found) >= 100)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(found, key=int) == [b"%d" % number for number in range(100)]


async def test_who_leaves_a_group_gets_nothing_more(broker: Broker) -> None:
    async with broker.subscribe("a", queue="g") as stays:
        async with broker.subscribe("a", queue="g"):
            pass

        async def all_come() -> bool:
            """Leaving is told to a server, which may take a moment."""
            for number in range(20):
                await broker.publish("a", b"%d" % number)
            found = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while len(found) < 20:
                        found.append(await anext(stays))
            return len(found) == 20

        assert await eventually(all_come)


async def test_namespaces_never_meet(broker: Broker) -> None:
    """Whatever is asked for: not by wildcards, names that look alike, or a shared group."""
    spaces = ["micro", "a", "a.b", "a-b", "a_b", "A"]
    async with contextlib.AsyncExitStack() as stack:
        everything = {
            space: await stack.enter_async_context(broker.subscribe(">", namespace=space))
            for space in spaces
        }
        grouped = {
            space: await stack.enter_async_context(
                broker.subscribe("b.c", queue="g", namespace=space)
            )
            for space in spaces
        }
        for space in spaces:
            await broker.publish("b.c", space.encode(), namespace=space)
            await broker.publish("end", b"end", namespace=space)
        for space in spaces:
            assert await bodies(everything[space], 2) == [space.encode(), b"end"]
            assert await bodies(grouped[space], 1) == [space.encode()]


async def test_a_subscription_that_is_closed_ends_its_reader(broker: Broker) -> None:
    messages = broker.subscribe("a")
    async with messages:
        reader = asyncio.ensure_future(anext(messages))
        await broker.publish("b", b"")
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(reader, 5)
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
    await messages.close()


async def test_a_reader_that_is_cancelled_loses_nothing(broker: Broker) -> None:
    async with broker.subscribe("a") as messages:
        reader = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await broker.publish("a", b"1")
        assert await bodies(messages, 1) == [b"1"]


async def test_two_readers_at_once(broker: Broker) -> None:
    async with broker.subscribe("a") as messages:
        first = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        with pytest.raises(BadRequest, match="two tasks"):
            await anext(messages)
        await broker.publish("a", b"1")
        assert (await first).body == b"1"


async def test_closing_ends_everything(subject: Subject) -> None:
    broker = subject.backend  # a remote one's caller is not its own to close
    async with broker.subscribe("a") as messages:
        reader = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        await broker.close()
        with pytest.raises(Unavailable, match="closed"):
            await asyncio.wait_for(reader, 5)
    for verb in (broker.publish("a", b""), broker.subscribe("a").open(), broker.check()):
        with pytest.raises(Unavailable, match="closed"):
            await verb
    with pytest.raises(Unavailable):
        await subject.broker.check()
    await broker.close()


async def test_leaving_leaves_nothing(broker: Broker) -> None:
    async with broker.subscribe("warm.up"):
        pass
    before = len(asyncio.all_tasks())
    for _ in range(3):
        async with broker.subscribe("a") as one, broker.subscribe("a", queue="g") as two:
            await broker.publish("a", b"1")
            assert await bodies(one, 1) == await bodies(two, 1) == [b"1"]
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
