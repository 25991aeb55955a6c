"""What events are, whatever keeps them and however they are reached: published, read, kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from micro_ray.errors import BadRequest, Conflict, MicroError, NotFound, TooLarge
from micro_ray.events import (
    MAX_EVENTS,
    MAX_GROUP,
    MAX_ID,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_PAYLOAD,
    MAX_TOPIC,
    Event,
    Events,
    Published,
    Usage,
)
from tests.fixtures.stores import Clock

EVERY_BYTE = bytes(range(256))


async def numbers(events: Events, topic: str, **options: Any) -> list[int]:
    return [event.sequence for event in await events.read(topic, **options)]


async def test_an_event_is_read_as_it_was_published(events: Events, clock: Clock) -> None:
    taken = await events.publish("t", EVERY_BYTE, metadata={"a": "1", "ä": "\u2028\n"}, id="one")
    assert taken == Published(topic="t", sequence=1, id="one", time=clock.now)
    assert await events.read("t") == [
        Event(
            topic="t",
            sequence=1,
            id="one",
            time=clock.now,
            payload=EVERY_BYTE,
            metadata={"a": "1", "ä": "\u2028\n"},
        )
    ]


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xff", "ä€😀".encode(), b'{"a":1}', b"aGk="])
async def test_any_bytes_are_a_payload(events: Events, payload: bytes) -> None:
    await events.publish("t", payload)
    (event,) = await events.read("t")
    assert event.payload == payload


@pytest.mark.parametrize("fill", [b"\x01", b'"', b"x", b"\xff"])
async def test_the_largest_event(events: Events, fill: bytes) -> None:
    payload = fill * MAX_PAYLOAD
    await events.publish("t", payload, metadata={"m": "x" * (MAX_METADATA_BYTES - 1)})
    (event,) = await events.read("t")
    same = event.payload == payload
    assert same
    with pytest.raises(TooLarge, match=str(MAX_PAYLOAD)):
        await events.publish("t", payload + b"x")
    assert await numbers(events, "t") == [1]


async def test_numbers_are_without_a_gap_and_each_topic_has_its_own(events: Events) -> None:
    published = await asyncio.gather(
        *(events.publish(f"t{i % 3}", str(i).encode()) for i in range(60))
    )
    for topic in ("t0", "t1", "t2"):
        assert sorted(p.sequence for p in published if p.topic == topic) == [*range(1, 21)]
        assert await numbers(events, topic) == [*range(1, 21)]
    by_place = {(p.topic, p.sequence): str(i).encode() for i, p in enumerate(published)}
    for topic in ("t0", "t1", "t2"):
        for event in await events.read(topic):
            assert by_place[topic, event.sequence] == event.payload
    assert len({p.id for p in published}) == 60


async def test_an_id_is_taken_once(events: Events, clock: Clock) -> None:
    first = await events.publish("t", b"1", id="same")
    clock.now += 5
    again = await events.publish("t", b"2", id="same")
    assert (again.sequence, again.time, again.duplicate) == (1, first.time, True)
    assert not first.duplicate
    assert [e.payload for e in await events.read("t")] == [b"1"]
    assert not (await events.publish("other", b"", id="same")).duplicate
    many = await asyncio.gather(*(events.publish("t", b"", id="many") for _ in range(20)))
    assert {p.sequence for p in many} == {2}
    assert sum(not p.duplicate for p in many) == 1


async def test_an_expected_last_event(events: Events) -> None:
    await events.publish("t", b"", expected=0)
    with pytest.raises(Conflict, match="last event 0 expected, 1 found"):
        await events.publish("t", b"", expected=0)
    await events.publish("t", b"", expected=1)
    with pytest.raises(Conflict):
        await events.publish("t", b"", expected=5)
    assert await numbers(events, "t") == [1, 2]
    # One that was taken before, and whose answer was lost, is told so.
    taken = await events.publish("t", b"", id="x", expected=2)
    assert (await events.publish("t", b"", id="x", expected=2)).sequence == taken.sequence
    outcomes = await asyncio.gather(
        *(events.publish("t", b"", expected=3) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(o, Published) for o in outcomes) == 1
    assert sum(isinstance(o, Conflict) for o in outcomes) == 9


async def test_reading_by_number_and_time(events: Events, clock: Clock) -> None:
    start = clock.now
    for i in range(20):
        clock.now = start + i // 2  # two at each second
        await events.publish("t", str(i).encode())
    every = [*range(1, 21)]
    assert await numbers(events, "t", limit=5) == every[:5]
    assert await numbers(events, "t", limit=5, offset=18) == every[18:]
    assert await numbers(events, "t", sequence=15) == every[14:]
    assert await numbers(events, "t", since=start + 3) == every[6:]
    assert await numbers(events, "t", until=start + 3) == every[:6]
    assert await numbers(events, "t", since=start + 2.5, until=start + 5) == every[6:10]
    assert await numbers(events, "t", since=start + 3, offset=1, limit=2) == every[7:9]
    assert await numbers(events, "t", since=start + 100) == []
    assert await numbers(events, "t", until=start - 100) == []
    assert await numbers(events, "t", sequence=2**62, offset=2**62) == []
    assert await numbers(events, "none") == []


async def test_time_never_falls(events: Events, clock: Clock) -> None:
    """Also when the clock is put back: reading by time finds what came later."""
    start = clock.now
    await events.publish("t", b"1")
    clock.now -= 3600
    await events.publish("t", b"2")
    clock.now = start + 1
    await events.publish("t", b"3")
    times = [event.time for event in await events.read("t")]
    assert times == [start, start, start + 1]
    assert await numbers(events, "t", since=start) == [1, 2, 3]


async def test_an_answer_is_bounded(events: Events) -> None:
    for _ in range(14):
        await events.publish("t", b"x" * MAX_PAYLOAD)
    with pytest.raises(TooLarge, match="limit"):
        await events.read("t")
    assert await numbers(events, "t", limit=12) == [*range(1, 13)]
    assert [e.sequence async for e in events.replay("t")] == [*range(1, 15)]


async def test_replay(events: Events, clock: Clock) -> None:
    """As fast as it goes, or with the pauses there were."""
    start = clock.now
    for i in range(10):
        clock.now = start + i * 0.2
        await events.publish("t", str(i).encode())
    assert [e.sequence async for e in events.replay("t")] == [*range(1, 11)]
    assert [e.sequence async for e in events.replay("t", sequence=4, until=start + 1.1)] == [
        4,
        5,
        6,
    ]
    passed, at = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    async for event in events.replay("t", speed=2, sleep=sleep, now=lambda: passed):
        at.append((event.sequence, round(passed, 3)))
    assert at == [(i + 1, round(i * 0.1, 3)) for i in range(10)]
    with pytest.raises(BadRequest, match="speed"):
        await anext(events.replay("t", speed=-1))


async def test_topics(events: Events, server_sizes: bool) -> None:
    assert await events.topics() == []
    await events.publish("b", b"12345", metadata={"k": "v"})
    await events.publish("a", b"")
    await events.publish("a", b"1")
    a, b = await events.topics()
    assert (a.name, a.first, a.last, a.events, a.groups) == ("a", 1, 2, 2, 0)
    assert (b.name, b.first, b.last, b.events) == ("b", 1, 1, 1)
    if server_sizes:  # with what the server keeps beside each
        assert 1 + 2 * 100 < a.size < 1 + 2 * 1000
        assert 7 + 100 < b.size < 7 + 1000
    else:
        assert (a.size, b.size) == (1, 7)
    assert (b.ttl, b.max_size) == (None, None)
    await events.fetch("b", "g")
    assert [t.groups for t in await events.topics()] == [0, 1]


async def test_what_a_namespace_keeps_is_counted(events: Events, server_sizes: bool) -> None:
    assert await events.usage(namespace="none") == Usage()
    await events.publish("a", b"12345", metadata={"k": "v"})
    for _ in range(2):
        await events.publish("b", b"123")
    await events.publish("a", b"x" * 50, namespace="other")
    found = await events.usage()
    assert (found.topics, found.events) == (2, 3)
    assert found.bytes == sum(topic.size for topic in await events.topics())
    assert found.bytes > 300 if server_sizes else found.bytes == 13
    (given,) = await events.fetch("a", "g", start="beginning", retry_limit=0)
    before = (await events.usage()).group_bytes
    await events.nack(given.token)
    assert len(await events.dead("a", "g")) == 1
    after = (await events.usage()).group_bytes
    assert after >= before + 7
    if not server_sizes:
        assert (before, after < 100) == (0, True)
    for topic in ("a", "b"):
        await events.delete(topic)
    found = await events.usage()
    assert (found.topics, found.events, found.bytes) == (0, 0, 0)


async def test_deleting_a_topic(events: Events) -> None:
    assert await events.delete("t") is False
    await events.publish("t", b"", id="x")
    await events.fetch("t", "g", start="beginning")
    assert await events.delete("t") is True
    assert await events.topics() == []
    assert await events.read("t") == await events.groups("t") == []
    taken = await events.publish("t", b"", id="x")
    assert (taken.sequence, taken.duplicate) == (1, False)
    assert len(await events.fetch("t", "g", start="beginning")) == 1


async def test_namespaces_are_apart(events: Events) -> None:
    for space in ("a", "b"):
        await events.publish("t", space.encode(), id="x", namespace=space)
        await events.fetch("t", f"g-{space}", namespace=space)
    for space in ("a", "b"):
        (event,) = await events.read("t", namespace=space)
        assert event.payload == space.encode()
        assert [g.name for g in await events.groups("t", namespace=space)] == [f"g-{space}"]
    assert await events.topics() == []
    assert await events.topics(namespace="none") == []


async def test_what_is_too_old_is_not_kept(events: Events, clock: Clock) -> None:
    await events.retain("t", ttl=60)
    await events.publish("t", b"1", id="x")
    clock.now += 30
    await events.publish("t", b"2")
    clock.now += 31
    assert await numbers(events, "t") == [2]
    assert [d.event.sequence for d in await events.fetch("t", "g", start="beginning")] == [2]
    # Its id may be used again, and numbers go on.
    taken = await events.publish("t", b"3", id="x")
    assert (taken.sequence, taken.duplicate) == (3, False)
    (topic,) = await events.topics()
    assert (topic.first, topic.last, topic.ttl) == (2, 3, 60)
    clock.now += 100
    assert await numbers(events, "t") == []
    assert (await events.publish("t", b"", expected=3)).sequence == 4


async def test_what_is_too_much_is_not_kept(events: Events, server_sizes: bool) -> None:
    await events.retain("t", max_size=100)
    for _ in range(20):
        await events.publish("t", b"x" * 30)
    assert await numbers(events, "t") == [18, 19, 20]
    await events.publish("t", b"x" * 500)
    assert await numbers(events, "t") == [21]  # the last one stays whatever its size
    (topic,) = await events.topics()
    assert (topic.first, topic.last, topic.events) == (21, 21, 1)
    assert topic.size > 500 if server_sizes else topic.size == 500
    await events.retain("t")
    await events.publish("t", b"")
    assert await numbers(events, "t") == [21, 22]


@pytest.mark.parametrize("name", ["", ".", "a/b", "a b", "-a", "a\n", "ä", "*", "a>", "x" * 256])
async def test_bad_names(events: Events, name: str) -> None:
    for attempt in (
        events.publish(name, b""),
        events.read(name),
        anext(events.consume(name)),
        events.fetch(name, "g"),
        events.retain(name),
        events.delete(name),
        events.groups(name),
        events.dead(name, "g"),
        events.requeue(name, "g"),
    ):
        with pytest.raises(BadRequest, match="topic"):
            await attempt
    for attempt in (events.fetch("t", name), events.dead("t", name), events.discard("t", name)):
        with pytest.raises(BadRequest, match="group"):
            await attempt
    assert await events.topics() == []


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"payload": b"x", "id": "a b"}, BadRequest, "id"),
        ({"payload": b"x", "id": "x" * (MAX_ID + 1)}, TooLarge, "id"),
        ({"payload": b"x", "expected": -1}, BadRequest, "expected"),
        (
            {"payload": b"x", "metadata": {str(i): "" for i in range(MAX_METADATA + 1)}},
            TooLarge,
            "metadata",
        ),
        ({"payload": b"x", "metadata": {"k": "x" * MAX_METADATA_BYTES}}, TooLarge, "metadata"),
    ],
)
async def test_bad_events(
    events: Events, options: dict[str, Any], error: type[MicroError], word: str
) -> None:
    with pytest.raises(error, match=word):
        await events.publish("t", **options)
    assert await events.read("t") == []


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"limit": MAX_EVENTS + 1},
        {"limit": -1},
        {"offset": -1},
        {"offset": 2**63},
        {"sequence": -1},
        {"sequence": 2**63},
    ],
)
async def test_bad_pages(events: Events, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(options))):
        await events.read("t", **options)


async def test_the_longest_names(events: Events) -> None:
    topic, group = "x" * MAX_TOPIC, "g" * MAX_GROUP
    await events.publish(topic, b"", id="i" * MAX_ID)
    (delivery,) = await events.fetch(topic, group, start="beginning")
    assert delivery.event.topic == topic
    with pytest.raises(BadRequest):
        await events.retain(topic, ttl=0)
    with pytest.raises(NotFound, match="no group"):
        await events.requeue(topic, "none")
