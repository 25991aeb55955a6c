"""Events on JetStream: several processes, servers that vanish, what a server says no to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from micro_ray.actors.backends import open_events
from micro_ray.errors import BadRequest, MicroError, TooLarge, Unavailable
from micro_ray.events import Delivery, Published
from micro_ray.events.jetstream import JetStreamEvents
from micro_ray.events.jetstream_api import Names, id_of
from micro_ray.events.jetstream_state import State
from micro_ray.finding import Examined
from micro_ray.nats_url import parse
from micro_ray.settings import load
from tests.fixtures.nats import PASSWORD, NatsServer, free_ports, jetstream, server
from tests.fixtures.stores import Clock
from tests.fixtures.wait import eventually


def backend(at: NatsServer, **options: Any) -> JetStreamEvents:
    return JetStreamEvents(parse(f"nats://{at.address}"), **{"patience": 10, **options})


@pytest.fixture
async def jet() -> AsyncIterator[NatsServer]:
    async with jetstream() as up:
        yield up


@asynccontextmanager
async def killed(events: JetStreamEvents) -> AsyncIterator[JetStreamEvents]:
    """A backend that says nothing when it goes, as one whose process is killed."""
    await events.__aenter__()
    try:
        yield events
    finally:
        await events._link.__aexit__()  # from now on nothing of it reaches anybody
        with contextlib.suppress(MicroError):
            await events.close()


def closing(items: AsyncIterator[Delivery]) -> Any:
    return contextlib.aclosing(items)  # type: ignore[type-var]


async def tried(publish: Awaitable[Published]) -> Published | MicroError:
    try:
        return await publish
    except MicroError as error:
        return error


# -- servers and processes that end --------------------------------------------------------------


async def test_a_killed_server_loses_nothing(jet: NatsServer) -> None:
    """Nor the publishers and consumers that go on meanwhile."""
    async with backend(jet) as events:
        seen: list[int] = []
        taken: list[int] = []

        async def consume() -> None:
            async with closing(events.consume("t", "g", start="beginning")) as given:
                async for delivery in given:
                    seen.append(delivery.event.sequence)

        async def publish() -> None:
            for number in range(300):
                taken.append((await events.publish("t", b"", id=str(number))).sequence)

        tasks = [asyncio.create_task(consume()), asyncio.create_task(publish())]
        for count in (50, 150):
            await eventually(lambda count=count: len(taken) > count, within=20)  # type: ignore[misc]  # the default binds it
            await jet.kill()
            await jet.start()
        await asyncio.wait_for(tasks[1], 30)
        await eventually(lambda: len(set(seen)) == 300, within=20)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert taken == [*range(1, 301)]
        assert seen == sorted(seen)
        assert [e.id for e in await events.read("t", limit=1000)] == [str(n) for n in range(300)]


async def test_members_in_two_processes(jet: NatsServer) -> None:
    """A group read through two backends shares its events; none is given twice, and an event is
    settled at either."""
    async with backend(jet) as here, backend(jet) as there:
        seen: list[tuple[str, Delivery]] = []

        async def member(name: str, events: JetStreamEvents) -> None:
            taken = events.consume("t", "g", start="beginning", auto_ack=False, prefetch=3)
            async with closing(taken) as given:
                async for delivery in given:
                    seen.append((name, delivery))
                    other = there if events is here else here
                    assert await other.ack(delivery.token) == 1

        members = [
            asyncio.create_task(member(name, events))
            for name, events in (("here", here), ("there", there), ("also", here))
        ]
        for i in range(200):
            await (here, there)[i % 2].publish("t", b"")

        async def settled() -> bool:
            (group,) = await there.groups("t")
            return (group.pending, group.waiting, group.next) == (0, 0, 201)

        await eventually(settled, within=20)
        for task in members:
            task.cancel()
        await asyncio.gather(*members, return_exceptions=True)
        assert sorted(d.event.sequence for _, d in seen) == [*range(1, 201)]
        assert {d.attempt for _, d in seen} == {1}


async def test_what_a_killed_consumer_held_is_given_again(jet: NatsServer, clock: Clock) -> None:
    async with backend(jet, clock=clock) as events:
        for _ in range(3):
            await events.publish("t", b"")
        async with killed(backend(jet, clock=clock)) as other:
            await other.fetch("t", "g", limit=2, start="beginning", ack_wait=10)
        rules: dict[str, Any] = {"limit": 5, "ack_wait": 10}
        assert [d.event.sequence for d in await events.fetch("t", "g", **rules)] == [3]
        clock.now += 11
        again = await events.fetch("t", "g", **rules)
        assert [(d.event.sequence, d.attempt) for d in again] == [(1, 2), (2, 2), (3, 2)]


async def test_who_dies_while_giving_up_loses_no_dead_letter(jet: NatsServer, clock: Clock) -> None:
    """Between the copy and the record: the next who looks makes the dead letter."""
    async with backend(jet, clock=clock) as events:
        await events.publish("t", b"poison", metadata={"k": "v"})
        async with killed(backend(jet, clock=clock)) as other:
            (given,) = await other.fetch("t", "g", start="beginning", retry_limit=0, ack_wait=10)
            (group,) = other._groups._known.values()

            async def never(*args: object) -> bool:
                await asyncio.Event().wait()
                return False

            group._append = never  # type: ignore[method-assign]  # it dies here
            dying = asyncio.create_task(other.nack(given.token))

            async def copied() -> bool:
                subject = f"{group.copies}.1"
                return bool(await events._api.message(group.stream, last_by_subj=subject))

            await eventually(copied)
            dying.cancel()
        assert await events.dead("t", "g") == []
        clock.now += 11
        await events.sweep()  # though nobody consumes
        (letter,) = await events.dead("t", "g")
        assert (letter.event.payload, letter.event.metadata) == (b"poison", {"k": "v"})
        assert (await events.read("t"))[0] == letter.event
        assert await events.requeue("t", "g") == 1
        (again,) = await events.fetch("t", "g", retry_limit=0)
        assert (again.event, again.attempt) == (letter.event, 1)


async def test_closing_gives_back_and_ends_consumers(jet: NatsServer) -> None:
    async with backend(jet) as events:
        await events.publish("t", b"")
        taken = events.consume("t", "g", start="beginning", auto_ack=False)
        await anext(taken)
        waiting = asyncio.ensure_future(anext(taken))
        idle = asyncio.ensure_future(anext(events.consume("t", "idle")))

        async def both() -> bool:
            return len(await events.groups("t")) == 2

        await eventually(both)
    for task in (waiting, idle):
        with pytest.raises(Unavailable, match="closed"):
            await asyncio.wait_for(task, 5)
    with pytest.raises(Unavailable, match="closed"):
        await events.publish("t", b"")
    async with backend(jet) as events:
        assert [d.attempt for d in await events.fetch("t", "g")] == [2]


# -- upkeep --------------------------------------------------------------------------------------


async def test_what_nobody_needs_is_swept_away(jet: NatsServer, clock: Clock) -> None:
    """Groups of consumers that vanished, and of a topic whose deletion was not finished."""
    async with backend(jet, clock=clock) as events:
        await events.publish("t", b"")
        async with killed(backend(jet, clock=clock)) as other:
            await anext(other.consume("t", start="beginning"))
        await events.fetch("u", "g")
        await events._api.delete("micro+micro+u")
        assert len(await events.groups("t")) == 1
        clock.now += 3601
        for _ in range(2):
            await events.sweep()
        assert await events.groups("t") == []
        assert await events._groups.lives("micro") == {}


async def test_a_large_topic_is_cut(jet: NatsServer) -> None:
    most = 3 * 2**20
    async with backend(jet, max_size=most) as events:
        for _ in range(60):
            await events.publish("t", bytes(100_000))

        async def cut() -> bool:
            (topic,) = await events.topics()
            return bool(2 * 2**20 < topic.size <= most and topic.last == 60)

        await eventually(cut, within=15)
        assert [e.sequence for e in await events.read("t")][-1] == 60


async def test_a_changed_setting_reaches_topics_that_are_there(jet: NatsServer) -> None:
    for ttl in (1000.0, 500.0):
        async with backend(jet, ttl=ttl) as events:
            await events.publish("t", b"")
            await events.sweep()
            info = await events._api.info("micro+micro+t")
            assert info is not None
            assert info["config"]["max_age"] == ttl * 1e9


# -- names ---------------------------------------------------------------------------------------


def test_no_two_things_have_one_name() -> None:
    names = Names("micro")
    words = ["a", "a.b", "a_b", "a-b", "A", "x" * 255, "x" * 254 + "y", "x" * 100 + "." + "x" * 154]
    streams = [names.groups_stream(space) for space in words[:5]]
    streams += [names.topic_stream(space, topic) for space in words[:5] for topic in words]
    assert len({*streams}) == len(streams)
    assert all(len(name) < 200 and not set(name) & set(" .*>/\\") for name in streams)
    subjects = [names.events(space, topic) for space in words[:5] for topic in words]
    assert len({*subjects}) == len(subjects)
    assert all(subject.count(".") == 3 for subject in subjects)
    for id in ("a", "a.b", "*", ">", "=", "=YQ", "x" * 128, "~!@#$%^&()[]{}", "a=b"):
        subject = names.event("n", "t", id)
        assert subject.count(".") == 4
        assert "*" not in subject
        assert ">" not in subject
        assert id_of(subject) == id


async def test_strange_ids(jet: NatsServer) -> None:
    async with backend(jet, prefix="acme.prod") as events:
        ids = ["*", ">", "a.b", "=", "$JS", "~" * 128]
        for id in ids:
            assert not (await events.publish("a.b", b"", id=id, namespace="n.m")).duplicate
            assert (await events.publish("a.b", b"", id=id, namespace="n.m")).duplicate
        assert [e.id for e in await events.read("a.b", namespace="n.m")] == ids
        assert await events.topics(namespace="n") == await events.topics(namespace="m") == []


async def test_it_is_examined(jet: NatsServer) -> None:
    async with backend(jet) as events:
        await events.publish("t", b"")
        assert isinstance(events, Examined)
        connected, kept, _ = await events.examine()
        assert connected.good
        assert kept.good
        assert "keeps 1 streams" in kept.text
        assert {connected.check, kept.check} == {"events"}
        await jet.kill()

        async def away() -> bool:
            return [f.good for f in await events.examine()] == [False]

        await eventually(away)
        await jet.start()
    async with server() as one, backend(one) as events:
        await eventually(lambda: events._link.info)
        assert [f.good for f in await events.examine()] == [True, False]


# -- what is refused -----------------------------------------------------------------------------


async def test_a_server_that_comes_later(tmp_path: Path) -> None:
    """What is asked before fails with the reason; a consumer that tries again is served."""
    (port,) = free_ports(1)
    late = NatsServer(tmp_path, port, f'jetstream {{ store_dir: "{tmp_path}/js" }}')
    async with backend(late, patience=0.2) as events:
        with pytest.raises(Unavailable, match=f"waiting for NATS at 127.0.0.1:{port}: .*Connect"):
            await events.publish("t", b"")
        try:
            await late.start()

            async def served() -> bool:
                return (await events.publish("t", b"", id="x")).sequence == 1

            await eventually(served, within=10)
        finally:
            await late.kill()


async def test_a_wrong_password() -> None:
    # As docs/operations.md has it: no more than this is needed.
    config = """authorization { users: [ { user: "micro", password: "other", permissions: {
        publish: ["micro.>", "$JS.API.>"], subscribe: ["micro.>", "_INBOX.>"] } } ] }"""
    async with jetstream(config) as one:
        place = parse(f"nats://micro:secret@{one.address}")
        async with JetStreamEvents(place, patience=0.5) as events:

            async def says() -> bool:
                with pytest.raises(Unavailable) as raised:
                    await events.publish("t", b"")
                assert "secret" not in str(raised.value)
                return "check user and password of events.url" in raised.value.detail

            await eventually(says)
        async with JetStreamEvents(parse(f"nats://micro:other@{one.address}")) as events:
            async with closing(events.consume("t", "g", retry_limit=0, auto_ack=False)) as given:
                waiting = asyncio.ensure_future(anext(given))
                await eventually(lambda: events.groups("t"))
                assert (await events.publish("t", b"")).sequence == 1
                assert await events.nack((await asyncio.wait_for(waiting, 0.4)).token) == 1
            assert len(await events.dead("t", "g")) == 1
            assert await events.discard("t", "g") == 1
            assert await events.delete("t")


async def test_a_server_without_jetstream() -> None:
    async with server() as one, backend(one) as events:
        with pytest.raises(Unavailable, match=r"put 'jetstream \{\}' into"):
            await events.publish("t", b"")


async def test_what_the_server_does_not_take() -> None:
    async with jetstream("max_payload: 100000") as one, backend(one) as events:
        with pytest.raises(TooLarge, match="max_payload"):
            await events.publish("t", bytes(200_000))
        assert (await events.publish("t", bytes(50_000))).sequence == 1


async def test_no_room(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    small = f'jetstream {{ store_dir: "{tmp_path}/js", max_file: 2MB }}'
    one = NatsServer(tmp_path, port, small)
    await one.start()
    try:
        async with backend(one) as events:
            outcomes = [await tried(events.publish("t", bytes(500_000))) for _ in range(10)]
            assert isinstance(outcomes[-1], Unavailable)
            assert "no room" in outcomes[-1].detail
            kept = sum(isinstance(one, Published) for one in outcomes)
            assert 0 < kept == len(await events.read("t"))
            assert await events.delete("t")
            assert (await events.publish("t", bytes(500_000))).sequence == 1
    finally:
        await one.kill()


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ({"url": "redis://a"}, "'redis' is none of"),
        ({"url": f"nats://u:{PASSWORD}"}, "events.url: server 'ss' is not like host:port"),
        ({"url": "tls://a", "tls_ca": "/nowhere.pem"}, "events.tls_ca: /nowhere.pem"),
        ({"url": "nats://a", "tls_cert": "/nowhere.pem"}, "events.tls_cert"),
        ({"url": "nats://a", "prefix": "a b"}, "events.prefix"),
        ({"url": "nats://a", "prefix": "a" * 33}, "events.prefix"),
    ],
)
async def test_what_cannot_be(events: dict[str, str], told: str) -> None:
    given = load({}, {"state": "/tmp/none", **{f"events.{k}": v for k, v in events.items()}})
    with pytest.raises(BadRequest) as raised:
        async with open_events(given):
            pass
    assert told in raised.value.detail
    assert PASSWORD not in raised.value.detail


async def test_the_setting_chooses(jet: NatsServer) -> None:
    given = {"state": "/tmp/none", "events.url": f"nats://{jet.address}", "events.ttl": 60}
    async with open_events(load({}, given)) as events:
        assert isinstance(events, JetStreamEvents)
        await events.publish("t", b"")
        (topic,) = await events.topics()
        assert (topic.ttl, topic.max_size) == (60, 2**30)


# -- the state of a group ------------------------------------------------------------------------


def test_records_make_the_state_again() -> None:
    """Whatever was done and taken back."""
    import random

    choose = random.Random(7)
    state = State.new("t", "g", 1, None)
    copy = State()
    copy.apply(state.whole("0"))
    for step in range(500):
        now = float(step)
        held = [(n, h.lease) for n, h in state.held.items()]
        some = choose.sample(held, min(len(held), 3))
        every = dict.fromkeys([*state.held, *state.dead], True)
        match choose.randrange(6):
            case 0:
                events: dict[int, Any] = {n: object() for n in range(state.next, state.next + 5)}
                state.give(choose.choice("ab"), 8, now, events | dict.fromkeys(every))
            case 1:
                state.acknowledge(some)
            case 2:
                state.retry(some, choose.choice([None, 0.0]), now, every)
            case 3:
                state.release(choose.choice("ab"), {n for n, _ in some}, now, every)
            case 4:
                state.requeue([n for n, _ in state.letters()][:2], now)
            case 5:
                state.retry_limit = choose.choice([0, 2])
                copy.retry_limit = state.retry_limit
        if choose.random() < 0.3:
            before = copy.whole("")
            state.undo()
            assert state.whole("") == before
        else:
            copy.apply(state.record("x"))
            state.keep()
        assert copy.whole("") == state.whole("")
    assert state.next > 20
