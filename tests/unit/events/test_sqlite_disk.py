"""SQLite under events: several processes, members that vanish, files that are no databases."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from micro_ray.errors import InternalError, Unavailable
from micro_ray.events import Delivery
from micro_ray.events.sqlite import SqliteEvents
from tests.fixtures.stores import Clock
from tests.fixtures.wait import eventually


async def test_a_commit_is_flushed(tmp_path: Path) -> None:
    """What publish waits for is in the file with the sync that a power failure needs."""
    async with SqliteEvents(tmp_path) as events:
        await events.publish("t", b"")
        file = await events._file("micro")  # the setting is of a connection, not of the file
        assert {c.execute("PRAGMA synchronous").fetchone()[0] for c in file._connections} == {2}
        assert file._connections[0].execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_what_was_taken_is_there_again(tmp_path: Path, clock: Clock) -> None:
    async with SqliteEvents(tmp_path, clock=clock) as events:
        for i in range(5):
            await events.publish("t", str(i).encode(), id=str(i))
        first = await events.fetch("t", "g", limit=2, start="beginning")
    async with SqliteEvents(tmp_path, clock=clock) as events:
        assert (await events.publish("t", b"", id="3")).sequence == 4
        assert await events.ack(first[0].token) == 1
        clock.now += 31
        again = await events.fetch("t", "g", limit=9)
        assert [(d.event.sequence, d.attempt) for d in again] == [(2, 2), (3, 1), (4, 1), (5, 1)]


async def test_members_in_two_backends(tmp_path: Path) -> None:
    """A group read through two backends shares its events; none is given twice, and each is told of
    what the other publishes, within a poll."""
    async with SqliteEvents(tmp_path) as here, SqliteEvents(tmp_path) as there:
        seen: list[tuple[str, Delivery]] = []

        async def member(name: str, events: SqliteEvents) -> None:
            taken = events.consume("t", "g", start="beginning", auto_ack=False, prefetch=3)
            async with contextlib.aclosing(taken) as given:  # type: ignore[type-var]
                async for delivery in given:
                    seen.append((name, delivery))
                    other = there if events is here else here
                    assert await other.ack(delivery.token) == 1

        members = [
            asyncio.create_task(member(name, events))
            for name, events in (("here", here), ("there", there), ("also", here))
        ]
        for i in range(300):
            await (here, there)[i % 2].publish("t", b"")
        await eventually(lambda: len(seen) >= 300, within=20)
        for task in members:
            task.cancel()
        await asyncio.gather(*members, return_exceptions=True)
        assert sorted(d.event.sequence for _, d in seen) == [*range(1, 301)]
        assert {d.attempt for _, d in seen} == {1}
        (group,) = await there.groups("t")
        assert (group.pending, group.waiting, group.next) == (0, 0, 301)


async def test_what_a_consumer_has_not_seen_keeps_its_attempts(tmp_path: Path) -> None:
    async with SqliteEvents(tmp_path) as events:
        for _ in range(5):
            await events.publish("t", b"")
        taken = events.consume("t", "g", start="beginning", auto_ack=False, prefetch=5)
        async with contextlib.aclosing(taken) as given:  # type: ignore[type-var]
            assert (await anext(given)).event.sequence == 1
        again = await events.fetch("t", "g", limit=9)
        assert [(d.event.sequence, d.attempt) for d in again] == [
            (1, 2), (2, 1), (3, 1), (4, 1), (5, 1),
        ]  # fmt: skip


async def test_closing_gives_back_and_ends_consumers(tmp_path: Path) -> None:
    async with SqliteEvents(tmp_path) as events:
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
    async with SqliteEvents(tmp_path) as events:
        assert [d.attempt for d in await events.fetch("t", "g")] == [2]


async def test_a_group_without_a_name_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    """One whose process was killed: nothing has removed it."""
    async with SqliteEvents(tmp_path, clock=clock) as killed:
        taken = killed.consume("t")
        waiting = asyncio.ensure_future(anext(taken))
        await eventually(lambda: killed.groups("t"))
        async with SqliteEvents(tmp_path, clock=clock) as events:
            await events.publish("t", b"")
            await waiting
            clock.now += 3601
            await events.sweep()
            assert await events.groups("t") == []
        with contextlib.suppress(Exception):
            await taken.aclose()  # type: ignore[attr-defined]


async def test_the_sweeper_removes_what_is_no_longer_kept(tmp_path: Path, clock: Clock) -> None:
    async with SqliteEvents(tmp_path, ttl=100, max_size=10_000, clock=clock) as events:
        for _ in range(30):
            await asyncio.gather(*(events.publish("t", b"x" * 10) for _ in range(100)))
        (topic,) = await events.topics()
        assert (topic.last, topic.size, topic.events) == (3000, 10_000, 1000)
        clock.now += 101
        await events.sweep()
        (topic,) = await events.topics()
        assert (topic.first, topic.last, topic.size) == (3001, 3000, 0)
        file = await events._file("micro")  # the rows themselves: what is read was filtered before
        left = await file.read_with(lambda c: c.execute("SELECT count(*) FROM events").fetchone())
        assert left == (0,)
        assert (await events.publish("t", b"")).sequence == 3001


async def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "micro.db").write_bytes(b"this was a database once " * 400)
    async with SqliteEvents(tmp_path) as events:
        with pytest.raises(InternalError, match=r"events.*micro\.db.*restore it"):
            await events.publish("t", b"")
        await events.publish("t", b"", namespace="other")
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file"):
        await SqliteEvents(tmp_path / "file" / "x").__aenter__()
