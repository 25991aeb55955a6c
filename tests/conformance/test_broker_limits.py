"""What every broker refuses, and what it does with those who do not read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from micro_ray.broker import (
    MAX_HEADER_NAME,
    MAX_HEADERS,
    MAX_HEADERS_BYTES,
    MAX_QUEUE,
    MAX_TOPIC,
    Broker,
    Subscription,
)
from micro_ray.errors import BadRequest, TooLarge, TooManyRequests
from tests.fixtures.brokers import LIMITS, Subject, bodies
from tests.fixtures.wait import eventually

TOPICS = ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\r\nb", "a\x00", "a\u2028b", "a\x7f"]
NOT_TO_PUBLISH = ["*", ">", "a.*", "a.>", "a*", ">.a", "a*b.c"]
NOT_TO_SUBSCRIBE = ["a*", "*a.b", "a.>.b", ">.a", "a>", "a.**", ">>"]


async def refused(broker: Broker, topic: str, kind: type[Exception], **more: Any) -> None:
    with pytest.raises(kind):
        async with broker.subscribe(topic, **more):
            pass


async def test_topics(broker: Broker) -> None:
    for topic in [*TOPICS, *NOT_TO_PUBLISH]:
        with pytest.raises(BadRequest, match="topic"):
            await broker.publish(topic, b"")
    for topic in [*TOPICS, *NOT_TO_SUBSCRIBE]:
        await refused(broker, topic, BadRequest)


async def test_how_long_a_topic_may_be(broker: Broker) -> None:
    for longest in ("x" * MAX_TOPIC, "ż" * (MAX_TOPIC // 2), "a." * (MAX_TOPIC // 2) + "a"):
        async with broker.subscribe(longest) as messages:
            await broker.publish(longest, b"1")
            assert (await anext(messages)).topic == longest
    for topic in ("x" * (MAX_TOPIC + 1), "ż" * (MAX_TOPIC // 2 + 1)):
        with pytest.raises(TooLarge, match=f"{MAX_TOPIC} allowed"):
            await broker.publish(topic, b"")
        await refused(broker, topic, TooLarge)


async def test_groups_and_namespaces(broker: Broker) -> None:
    for queue in ("a b", "*", ">", "a\r\n", "-a", "x" * (MAX_QUEUE + 1), "ż"):
        await refused(broker, "a", BadRequest, queue=queue)
    async with broker.subscribe("a", queue="x" * MAX_QUEUE) as messages:
        await broker.publish("a", b"1")
        assert await bodies(messages, 1) == [b"1"]


@pytest.mark.parametrize("namespace", ["", "*", ">", "a b", "a\r\nSUB > 1", "x" * 254, "ż"])
async def test_namespaces_that_cannot_be(subject: Subject, namespace: str) -> None:
    broker = subject.backend  # a caller's namespace is refused on the way already
    with pytest.raises(BadRequest, match="namespace"):
        await broker.publish("a", b"", namespace=namespace)
    await refused(broker, "a", BadRequest, namespace=namespace)


async def test_sizes(broker: Broker) -> None:
    async with broker.subscribe("a") as messages:
        largest = bytes(range(256)) * (LIMITS.message // 256)
        await broker.publish("a", largest)
        assert await bodies(messages, 1) == [largest]
        with pytest.raises(TooLarge, match=f"{LIMITS.message} allowed"):
            await broker.publish("a", bytes(LIMITS.message + 1))
        await broker.publish("a", b"after")
        assert await bodies(messages, 1) == [b"after"]


async def test_headers(broker: Broker) -> None:
    many = {f"h{number}": "v" for number in range(MAX_HEADERS)}
    long = {"n" * MAX_HEADER_NAME: "v" * (MAX_HEADERS_BYTES - MAX_HEADER_NAME)}
    async with broker.subscribe("a") as messages:
        for headers in (many, long):
            await broker.publish("a", b"", headers=headers)
            assert (await anext(messages)).headers == headers
    for headers in ({**many, "one": "more"}, {"n": "v" * MAX_HEADERS_BYTES}, {"n": "ż" * 8192}):
        with pytest.raises(TooLarge, match="allowed"):
            await broker.publish("a", b"", headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"": "v"}, {"a b": "v"}, {"a:b": "v"}, {"a\r\nb": "v"}, {"ż": "v"}, {"-a": "v"},
        {"n" * (MAX_HEADER_NAME + 1): "v"}, {"a": "v\r\nb: c"}, {"a": "\x00"}, {"a": " v"},
        {"a": "v "}, {"a": "\ud800"}, {"Nats-Trace-Dest": "other"}, {"nats-msg-id": "1"},
    ],
    ids=repr,
)  # fmt: skip
async def test_headers_that_cannot_be(broker: Broker, headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        await broker.publish("a", b"", headers=headers)


async def test_bodies_are_bytes(broker: Broker) -> None:
    with pytest.raises(BadRequest, match="bytes are sent"):
        await broker.publish("a", "text")  # type: ignore[arg-type]


async def test_how_many_subscriptions(broker: Broker) -> None:
    async with contextlib.AsyncExitStack() as stack:
        several = [
            await stack.enter_async_context(broker.subscribe(f"a.{number}"))
            for number in range(LIMITS.subscriptions)
        ]
        with pytest.raises(TooManyRequests, match=r"broker\.max_subscriptions") as raised:
            await stack.enter_async_context(broker.subscribe("one.more"))
        assert raised.value.retry_after
        # Another namespace has its own, and a place that becomes free is free.
        await stack.enter_async_context(broker.subscribe("a", namespace="other"))
        await several[0].close()

        async def enters() -> bool:
            await stack.enter_async_context(broker.subscribe("one.more"))
            return True

        assert await eventually(enters)


class Seen:
    """What a reader has got until a last message: numbers, their sizes, and how many are said to
    be lost."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.size = 0
        self.dropped = 0

    async def read(self, messages: Subscription, last: bytes = b"end") -> Seen:
        async for message in messages:
            self.dropped += message.dropped
            if message.body == last:
                break
            number = int(message.body.split()[0])
            before = self.numbers[-1] if self.numbers else -1
            assert number == before + 1 + message.dropped
            self.numbers.append(number)
            self.size += len(message.body)
        return self


async def test_who_does_not_read_loses_the_oldest_and_learns_it(broker: Broker) -> None:
    """And who reads loses nothing because of the other."""
    total = 20 * LIMITS.waiting
    async with broker.subscribe("a") as slow, broker.subscribe("a") as fast:
        seen = Seen()
        reading = asyncio.create_task(seen.read(fast))
        for number in range(total):
            await broker.publish("a", b"%d %b" % (number, b"x" * 100))
            if number % 200 == 199:
                await eventually(lambda: len(seen.numbers) == number + 1, every=0)  # noqa: B023 - awaited here
        await broker.publish("a", b"end")
        await reading
        assert (seen.numbers, seen.dropped) == (list(range(total)), 0)
        late = await Seen().read(slow)
    assert late.dropped > 0
    assert len(late.numbers) + late.dropped == total
    assert late.numbers[-1] == total - 1


async def test_what_waits_is_bounded_in_bytes(subject: Subject) -> None:
    broker = subject.backend
    async with contextlib.AsyncExitStack() as stack:
        several = [await stack.enter_async_context(broker.subscribe("a")) for _ in range(5)]
        last = await stack.enter_async_context(broker.subscribe("b"))
        for number in range(30):
            await broker.publish("a", b"%d %b" % (number, b"x" * (LIMITS.message - 10)))
        await broker.publish("a", b"end")
        await broker.publish("b", b"all are there")
        assert (await anext(last)).body == b"all are there"
        late = [await Seen().read(messages) for messages in several]
    assert sum(one.size for one in late) <= LIMITS.namespace_bytes
    for one in late:
        assert one.size <= LIMITS.waiting_bytes
        assert len(one.numbers) + one.dropped == 30
        assert one.numbers[-1] == 29
