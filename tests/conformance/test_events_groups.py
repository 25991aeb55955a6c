"""What events are: groups, what they are given, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from micro_ray.errors import BadRequest, NotFound, TooLarge
from micro_ray.events import MAX_DEAD, MAX_GROUPS, Delivery, Events
from tests.fixtures.stores import Clock
from tests.fixtures.wait import eventually


async def take(items: AsyncIterator[Delivery], count: int, within: float = 10) -> list[Delivery]:
    async with asyncio.timeout(within):
        return [await anext(items) for _ in range(count)]


async def fill(events: Events, count: int, topic: str = "t") -> None:
    await asyncio.gather(*(events.publish(topic, b"") for _ in range(count)))


def numbers(given: list[Delivery]) -> list[int]:
    return [delivery.event.sequence for delivery in given]


def closing(items: AsyncIterator[Delivery]) -> Any:
    return contextlib.aclosing(items)  # type: ignore[type-var]


async def test_groups_get_everything_in_order(events: Events) -> None:
    await fill(events, 50)
    for group in ("a", "b"):
        async with closing(events.consume("t", group, start="beginning")) as given:
            found = await take(given, 50)
        assert numbers(found) == [*range(1, 51)]
        assert all(delivery.attempt == 1 for delivery in found)


async def test_events_come_as_they_are_published(events: Events) -> None:
    async with closing(events.consume("t", "g", start="beginning")) as given:
        waiting = asyncio.create_task(take(given, 1))
        await events.publish("t", b"1", metadata={"k": "v"}, id="x")
        (delivery,) = await waiting
        assert (delivery.event.payload, delivery.event.id) == (b"1", "x")
        assert delivery.event.metadata == {"k": "v"}
        assert delivery.event == (await events.read("t"))[0]
        for i in range(20):
            waiting = asyncio.create_task(take(given, 1))
            await events.publish("t", str(i).encode())
            assert (await waiting)[0].event.payload == str(i).encode()


async def test_where_a_group_begins(events: Events, clock: Clock) -> None:
    start = clock.now
    for i in range(10):
        clock.now = start + i
        await events.publish("t", b"")
    cases: dict[str, tuple[dict[str, Any], list[int]]] = {
        "beginning": ({"start": "beginning"}, [*range(1, 11)]),
        "sequence": ({"sequence": 7}, [7, 8, 9, 10]),
        "since": ({"since": start + 4.5}, [6, 7, 8, 9, 10]),
        "now": ({}, []),
        "later": ({"sequence": 12}, []),
    }
    for name, (options, expected) in cases.items():
        assert numbers(await events.fetch("t", name, limit=100, **options)) == expected
    await fill(events, 2)
    assert numbers(await events.fetch("t", "now", limit=100, start="beginning")) == [11, 12]
    assert numbers(await events.fetch("t", "later", limit=100)) == [12]
    for bad in ({"start": "then"}, {"start": "beginning", "sequence": 3}):
        with pytest.raises(BadRequest, match="start"):
            await events.fetch("t", "bad", **bad)


async def test_a_group_goes_on_where_it_was(events: Events) -> None:
    await fill(events, 30)
    seen: list[int] = []
    while len(seen) < 30:
        async with closing(events.consume("t", "g", start="beginning", auto_ack=False)) as given:
            for delivery in await take(given, 5):
                assert await events.ack(delivery.token) == 1
                seen.append(delivery.event.sequence)
    assert seen == [*range(1, 31)]


async def test_members_share(events: Events) -> None:
    """Each event goes to one of them, and to both some."""
    seen: dict[str, list[int]] = {"a": [], "b": []}

    async def member(name: str) -> None:
        async with closing(events.consume("t", "g", start="beginning", prefetch=2)) as given:
            async for delivery in given:
                seen[name].append(delivery.event.sequence)

    members = [asyncio.create_task(member(name)) for name in seen]

    async def two() -> bool:
        return len(await events.groups("t")) == 1

    await eventually(two)
    await fill(events, 200)
    await eventually(lambda: sum(map(len, seen.values())) >= 200)
    for task in members:
        task.cancel()
    await asyncio.gather(*members, return_exceptions=True)
    assert sorted(seen["a"] + seen["b"]) == [*range(1, 201)]
    for mine in seen.values():
        assert mine == sorted(mine)


async def test_a_consumer_without_a_group_is_alone(events: Events) -> None:
    await fill(events, 3)
    async with closing(events.consume("t", start="beginning")) as one:
        assert numbers(await take(one, 3)) == [1, 2, 3]
        async with closing(events.consume("t", start="beginning")) as two:
            assert numbers(await take(two, 3)) == [1, 2, 3]
            assert len(await events.groups("t")) == 2

    async def none() -> bool:
        return not await events.groups("t")

    await eventually(none)


async def test_what_is_not_settled_goes_to_others_at_once(events: Events) -> None:
    await fill(events, 6)
    options: dict[str, Any] = {"start": "beginning", "auto_ack": False, "prefetch": 4}
    async with closing(events.consume("t", "g", **options)) as given:
        first = await take(given, 3)
        assert await events.ack(first[0].token) == 1
    async with closing(events.consume("t", "g", **options)) as given:
        again = await take(given, 4)
    assert [(d.event.sequence, d.attempt) for d in again][:2] == [(2, 2), (3, 2)]
    assert numbers(again) == [2, 3, 4, 5]
    # The old tokens hold nothing any more.
    assert await events.ack(first[1].token, first[2].token, first[0].token) == 0


async def test_what_is_not_settled_in_time_is_given_again(events: Events, clock: Clock) -> None:
    await fill(events, 2)
    options: dict[str, Any] = {"start": "beginning", "ack_wait": 10.0}
    first = await events.fetch("t", "g", limit=2, **options)
    clock.now += 9
    assert await events.fetch("t", "g", **options) == []
    assert await events.progress(first[0].token) == 1
    clock.now += 2
    second = await events.fetch("t", "g", limit=2, **options)
    assert [(d.event.sequence, d.attempt) for d in second] == [(2, 2)]
    assert await events.ack(first[1].token) == 0
    assert await events.ack(first[0].token, second[0].token) == 2
    clock.now += 100
    assert await events.fetch("t", "g", **options) == []


async def test_a_consumer_waits_for_what_is_due(events: Events, clock: Clock) -> None:
    await fill(events, 1)
    (held,) = await events.fetch("t", "g", start="beginning", ack_wait=5)
    async with closing(events.consume("t", "g", ack_wait=5)) as given:
        waiting = asyncio.create_task(take(given, 1))
        await events.publish("other", b"")
        clock.now += 6
        (again,) = await waiting
    assert (again.event, again.attempt) == (held.event, 2)


async def test_the_clock_may_go_back(events: Events, clock: Clock) -> None:
    """What was given out in the future is given again, not held until then."""
    await fill(events, 1)
    await events.fetch("t", "g", start="beginning")
    clock.now -= 86_400
    assert numbers(await events.fetch("t", "g", start="beginning")) == [1]


async def test_giving_back(events: Events, clock: Clock) -> None:
    await fill(events, 3)
    options: dict[str, Any] = {"start": "beginning", "backoff": 4.0, "limit": 3}
    one, two, three = await events.fetch("t", "g", **options)
    assert await events.nack(one.token) == 1
    assert await events.nack(two.token, delay=0) == 1
    assert await events.ack(three.token) == 1
    assert await events.nack(three.token) == 0
    (two,) = await events.fetch("t", "g", **options)
    assert (two.event.sequence, two.attempt) == (2, 2)
    assert await events.ack(two.token) == 1
    pauses = []
    for attempt in range(2, 8):
        waited = 0
        while not (found := await events.fetch("t", "g", **options)):
            clock.now += 1
            waited += 1
        pauses.append(waited)
        assert found[0].attempt == attempt
        assert await events.nack(found[0].token) == 1
    assert pauses == [4, 8, 16, 32, 60, 60]


async def test_one_at_a_time(events: Events, clock: Clock) -> None:
    """With pending=1 nothing is given before what is before it is settled, failures included."""
    await fill(events, 3)
    options: dict[str, Any] = {"start": "beginning", "pending": 1, "limit": 10}
    (one,) = await events.fetch("t", "g", **options)
    assert await events.fetch("t", "g", **options) == []
    assert await events.nack(one.token, delay=5) == 1
    assert await events.fetch("t", "g", **options) == []
    clock.now += 5
    (one,) = await events.fetch("t", "g", **options)
    assert (one.event.sequence, one.attempt) == (1, 2)
    assert await events.ack(one.token) == 1
    assert numbers(await events.fetch("t", "g", **options)) == [2]


async def test_a_consumer_holds_no_more_than_it_may(events: Events) -> None:
    await fill(events, 10)
    options: dict[str, Any] = {"start": "beginning", "auto_ack": False, "prefetch": 3}
    async with closing(events.consume("t", "g", **options)) as given:
        held = await take(given, 3)
        more = asyncio.create_task(take(given, 1))
        rest = await events.fetch("t", "g", limit=100)
        assert numbers(rest) == [4, 5, 6, 7, 8, 9, 10]
        await events.publish("t", b"")
        assert not more.done()
        assert await events.ack(held[0].token) == 1
        assert numbers(await more) == [11]


# -- dead letters --------------------------------------------------------------------------------


async def fail(events: Events, times: int, **options: Any) -> Delivery:
    for attempt in range(1, times + 1):
        (given,) = await events.fetch("t", "g", wait=5, **options)
        assert given.attempt == attempt
        assert await events.nack(given.token, delay=0) == 1
    return given


async def test_what_fails_too_often_is_a_dead_letter(events: Events, clock: Clock) -> None:
    await events.publish("t", b"poison", metadata={"k": "v"})
    await fail(events, 3, start="beginning", retry_limit=2)
    assert await events.fetch("t", "g", retry_limit=2) == []
    (letter,) = await events.dead("t", "g")
    assert (letter.event.payload, letter.attempts, letter.time) == (b"poison", 3, clock.now)
    assert letter.event == (await events.read("t"))[0]
    assert await events.dead("t", "other") == []
    (group,) = await events.groups("t")
    assert (group.pending, group.waiting, group.dead) == (0, 0, 1)


async def test_dead_letters_are_requeued(events: Events, clock: Clock) -> None:
    await events.retain("t", ttl=50)
    await fill(events, 3)
    given = await events.fetch("t", "g", limit=3, start="beginning", retry_limit=0)
    assert await events.nack(*(d.token for d in given)) == 3
    clock.now += 100  # the topic keeps them no more, the dead letters stay
    assert await events.read("t") == []
    letters = await events.dead("t", "g")
    assert [d.event.sequence for d in letters] == [1, 2, 3]
    assert [d.event.sequence for d in await events.dead("t", "g", limit=1, offset=1)] == [2]
    assert await events.requeue("t", "g", [2, 99]) == 1
    assert await events.requeue("t", "g", [2]) == 0
    (again,) = await events.fetch("t", "g", limit=10, retry_limit=0)
    assert (again.event, again.attempt) == (letters[1].event, 1)
    assert len(await events.dead("t", "g")) == 2
    assert await events.nack(again.token) == 1
    assert [d.event.sequence for d in await events.dead("t", "g")] == [1, 2, 3]
    assert await events.discard("t", "g", [1]) == 1
    assert await events.requeue("t", "g") == 2
    given = await events.fetch("t", "g", limit=10, retry_limit=0)
    assert numbers(given) == [2, 3]
    assert await events.ack(*(d.token for d in given)) == 2
    assert await events.dead("t", "g") == []
    assert await events.requeue("t", "g") == await events.discard("t", "g") == 0


async def test_leaving_with_the_last_attempt_is_a_failure(events: Events) -> None:
    """An event that kills its consumers does not do so for ever."""
    await fill(events, 2)
    for _ in range(2):
        options: dict[str, Any] = {"start": "beginning", "retry_limit": 1, "auto_ack": False}
        async with closing(events.consume("t", "g", prefetch=1, **options)) as given:
            assert numbers(await take(given, 1)) == [1]

    async def dead() -> bool:
        return [d.event.sequence for d in await events.dead("t", "g")] == [1]

    await eventually(dead)
    assert numbers(await events.fetch("t", "g", retry_limit=1)) == [2]


async def test_retries_without_a_limit(events: Events) -> None:
    await fill(events, 1)
    await fail(events, 40, start="beginning", retry_limit=-1)
    assert await events.dead("t", "g") == []


async def test_expiry_counts_as_a_failure(events: Events, clock: Clock) -> None:
    await fill(events, 1)
    options: dict[str, Any] = {"start": "beginning", "retry_limit": 1, "ack_wait": 5.0}
    for _ in range(2):
        assert numbers(await events.fetch("t", "g", **options)) == [1]
        clock.now += 6
    # Nobody consumes any more: it is given up all the same.
    await eventually(lambda: _count(events), within=15)


async def _count(events: Events) -> int:
    return len(await events.dead("t", "g"))


# -- limits and ends -----------------------------------------------------------------------------


async def test_groups_are_listed_and_deleted(events: Events) -> None:
    await fill(events, 5)
    await events.fetch("t", "b", start="beginning", limit=2)
    await events.fetch("t", "a")
    a, b = await events.groups("t")
    assert (a.name, a.next, a.waiting, a.pending) == ("a", 6, 0, 0)
    assert (b.name, b.next, b.waiting, b.pending) == ("b", 3, 3, 2)
    assert await events.delete_group("t", "b") is True
    assert await events.delete_group("t", "b") is False
    assert [g.name for g in await events.groups("t")] == ["a"]


@pytest.mark.parametrize("what", ["topic", "group"])
async def test_consumers_of_what_is_deleted_are_told(events: Events, what: str) -> None:
    async with closing(events.consume("t", "g")) as given:
        waiting = asyncio.create_task(take(given, 1))
        await eventually(lambda: events.groups("t"))
        await (events.delete("t") if what == "topic" else events.delete_group("t", "g"))
        with pytest.raises(NotFound, match="deleted"):
            await waiting


async def test_leaving_leaves_nothing(events: Events) -> None:
    await fill(events, 1)
    before = len(asyncio.all_tasks())
    given = [events.consume("t", f"g{i}", start="beginning") for i in range(5)]
    for one in given:
        await take(one, 1)
    waiting = [asyncio.ensure_future(anext(one)) for one in given]
    await events.publish("other", b"")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    # One for the connection's own work may have come with the first stream.
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ack_wait", [0, -1, 3601]),
        ("retry_limit", [-2, 1001]),
        ("backoff", [-1, 86_401]),
        ("pending", [0, 10_001]),
        ("limit", [0, 1001]),
        ("wait", [-1, 61]),
        ("sequence", [-1, 2**63]),
    ],
)
async def test_bad_rules(events: Events, name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(BadRequest, match=name):
            await events.fetch("t", "g", **{name: value})  # type: ignore[arg-type]
    assert await events.topics() == []


async def test_bad_tokens(events: Events) -> None:
    for token in ("", "x", "1.2", "1.2.x", "-1.2.3", "1.2.3.4", "9" * 70, "1.2." + "9" * 30, "²"):
        for verb in (events.ack, events.nack, events.progress):
            with pytest.raises(BadRequest, match="token"):
                await verb(token)
    assert await events.ack("1.2.3") == await events.ack() == 0
    with pytest.raises(TooLarge, match="tokens"):
        await events.ack(*["1.2.3"] * 1001)
    with pytest.raises(BadRequest, match="delay"):
        await events.nack("1.2.3", delay=-1)


async def test_a_topic_has_a_most_of_groups(events: Events) -> None:
    for start in range(0, MAX_GROUPS, 100):
        await asyncio.gather(*(events.fetch("t", f"g{start + i}") for i in range(100)))
    with pytest.raises(TooLarge, match=str(MAX_GROUPS)):
        await events.fetch("t", "more")
    assert await events.delete_group("t", "g0")
    await events.fetch("t", "more")


async def test_no_dead_letter_is_dropped_for_want_of_room(events: Events, clock: Clock) -> None:
    """What would be one too many is tried on."""
    rules: dict[str, Any] = {"start": "beginning", "retry_limit": 0, "pending": 10_000}
    await fill(events, MAX_DEAD + 1)
    for _ in range(MAX_DEAD // 1000):
        given = await events.fetch("t", "g", limit=1000, **rules)
        assert await events.nack(*(d.token for d in given)) == 1000
    (last,) = await events.fetch("t", "g", **rules)
    assert await events.nack(last.token) == 1
    (group,) = await events.groups("t")
    assert (group.dead, group.pending) == (MAX_DEAD, 1)
    clock.now += 60
    (again,) = await events.fetch("t", "g", **rules)
    assert again.event == last.event
    assert await events.discard("t", "g", [1]) == 1
    assert await events.nack(again.token) == 1
    (group,) = await events.groups("t")
    assert (group.dead, group.pending) == (MAX_DEAD, 0)
