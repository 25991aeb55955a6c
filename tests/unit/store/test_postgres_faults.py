"""A store on PostgreSQL while connections and servers die: what was answered is true."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from micro_ray.errors import BadGateway, Conflict, MicroError, Unavailable
from micro_ray.store import Change, Put
from micro_ray.store.postgres import PostgresStore
from tests.fixtures.postgres import Postgres, schema, server
from tests.fixtures.proxy import Proxy, proxy
from tests.fixtures.wait import eventually

#: What only the statement of a plain put has on the wire: its metadata, as a text of two bytes.
PUT = b"\x00\x00\x00\x02{}"
DATABASE = "micro_ray.store.postgres_database"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``far`` is reached through ``between``, ``near`` directly; both are the same store."""

    near: PostgresStore
    far: PostgresStore
    between: Proxy


@pytest.fixture
async def line(postgres: Postgres) -> AsyncIterator[Line]:
    async with (
        schema(postgres.url()) as name,
        proxy(postgres.port) as between,
        PostgresStore(postgres.url(name)) as near,
        PostgresStore(postgres.url(name, port=between.port), patience=2) as far,
    ):
        await far.write("k", b"0")
        yield Line(near=near, far=far, between=between)


# -- commits whose answer is lost ----------------------------------------------------------------


async def test_a_commit_that_was_done_is_answered_so(line: Line) -> None:
    """The line is cut after COMMIT reached the server and before its answer reached us."""
    line.between.cuts_after[b"COMMIT"] = 1
    record = await line.far.write("k", b"1", expected=1)
    assert line.between.cuts_after[b"COMMIT"] == 0
    assert record.version == 2, "it was not done a second time"
    assert await line.near.read("k") == record
    assert await line.near.revision() == 2


async def test_a_commit_that_was_not_done_is_done_once(line: Line) -> None:
    """The line is cut before COMMIT reaches the server."""
    line.between.cuts_before[b"COMMIT"] = 2
    record = await line.far.write("k", b"1", expected=1)
    assert line.between.cuts_before[b"COMMIT"] == 0
    assert record.version == 2
    assert await line.near.read("k") == record


async def test_a_put_whose_answer_is_lost(line: Line) -> None:
    """It is one statement, committed by itself; the versions are those that were given."""
    line.between.cuts_after[PUT] = 1
    record = await line.far.write("k", b"1")
    assert line.between.cuts_after[PUT] == 0
    assert record.version == 2, "it was not done a second time"
    assert await line.near.read("k") == record
    assert await line.near.revision() == 2


async def test_puts_of_a_group_whose_answer_is_lost(line: Line) -> None:
    first = asyncio.create_task(line.far.write("k", b"1"))
    await asyncio.sleep(0)  # the first goes alone, the rest wait for it together
    line.between.cuts_after[b"group"] = 1
    group = await asyncio.gather(*(line.far.write(f"group-{i}", b"") for i in range(5)))
    assert line.between.cuts_after[b"group"] == 0
    assert (await first).version == 2
    assert sorted(record.version for record in group) == [3, 4, 5, 6, 7]
    assert [await line.near.read(record.key) for record in group] == group


async def test_a_put_that_did_not_arrive_is_done_once(line: Line) -> None:
    line.between.cuts_before[PUT] = 2
    record = await line.far.write("k", b"1")
    assert line.between.cuts_before[PUT] == 0
    assert record.version == 2
    assert await line.near.read("k") == record


async def test_a_put_in_silence_is_asked_after(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("micro_ray.store.postgres_pool.ANSWER", 0.3)
    line.between.silences_after[PUT] = 1
    record = await line.far.write("k", b"1")
    assert record.version == 2 == await line.near.revision()


async def test_a_put_of_unknown_end_is_said_to_be(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{DATABASE}.RESOLVE", 0.5)
    line.between.cuts_after[PUT] = 1
    writing = asyncio.create_task(line.far.write("k", b"1"))
    await eventually(lambda: line.between.cuts_after[PUT] == 0, every=0.0)
    line.between.refusing = True
    line.between.cut()
    try:
        with pytest.raises(BadGateway, match="read before you write again"):
            await writing
    finally:
        line.between.refusing = False
    await line.far.write("k", b"2")
    assert (await line.near.read("k")).value == b"2"


async def test_a_commit_in_silence_is_asked_after(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has committed, and its answer never comes; nobody closes the line."""
    monkeypatch.setattr("micro_ray.store.postgres_pool.ANSWER", 0.3)
    line.between.silences_after[b"COMMIT"] = 1
    record = await line.far.write("k", b"1", expected=1)
    assert record.version == 2 == await line.near.revision()


@pytest.mark.parametrize("done", [True, False])
async def test_an_unknown_end_is_said_to_be_unknown(
    line: Line, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    monkeypatch.setattr(f"{DATABASE}.RESOLVE", 0.5)
    cuts = line.between.cuts_after if done else line.between.cuts_before
    cuts[b"COMMIT"] = 1
    writing = asyncio.create_task(line.far.write("k", b"1", expected=1))
    await eventually(lambda: cuts[b"COMMIT"] == 0, every=0.0)
    line.between.refusing = True
    line.between.cut()
    try:
        with pytest.raises(BadGateway, match="read before you write again"):
            await writing
    finally:
        line.between.refusing = False
    assert (await line.far.read("k")).value == (b"1" if done else b"0")
    # What comes after is not hindered by it.
    await line.far.write("k", b"2")
    assert (await line.near.read("k")).value == b"2"


async def test_blobs_over_lines_that_break(line: Line) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(8):
            yield bytes([i]) * 200_000
            if i % 3 == 1:
                line.between.cut()

    line.between.cuts_after[b"COMMIT"] = 1
    written = await line.far.write_blob("b", pieces())
    assert line.between.cuts_after[b"COMMIT"] == 0
    assert written.size == 1_600_000
    got = bytearray()
    async with contextlib.aclosing(line.far.read_blob("b")) as reading:
        async for piece in reading:
            got += piece
            if len(got) % (256 * 1024) == 0:
                line.between.cut()
    assert bytes(got) == b"".join(bytes([i]) * 200_000 for i in range(8))
    line.between.cuts_after[b"COMMIT"] = 1
    assert await line.far.delete_blob("b") is True
    assert await line.near.blobs() == []


# -- lines that break or stop --------------------------------------------------------------------


async def test_a_server_that_does_not_answer(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs end in bounded time, and go on when it answers again."""
    monkeypatch.setattr("micro_ray.store.postgres_pool.ANSWER", 0.5)
    line.between.stall()
    for verb in (line.far.read("k"), line.far.write("k", b"1"), line.far.keys()):
        with pytest.raises((Unavailable, BadGateway)):
            await asyncio.wait_for(verb, 20)
    line.between.resume()
    assert (await eventually(lambda: line.far.read("k"))).key == "k"
    await line.far.write("k", b"2")
    assert (await line.near.read("k")).value == b"2"


async def test_a_slow_line_only_takes_longer(line: Line) -> None:
    line.between.delay = 0.05
    records = await asyncio.gather(*(line.far.write(str(i), b"") for i in range(20)))
    assert len({r.version for r in records}) == 20
    assert len(await line.far.keys()) == 21


async def test_no_update_is_lost_while_connections_are_killed(
    line: Line, postgres: Postgres
) -> None:
    """Counting by compare-and-set over two pools; a kill falls between any two statements."""
    done = asyncio.Event()

    async def kill() -> None:
        while not done.is_set():
            await asyncio.to_thread(postgres.cut_all)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 0.05)

    async def count(store: PostgresStore) -> int:
        told = 0
        while told < 15:
            record = await store.read("k")
            try:
                value = str(int(record.value) + 1).encode()
                await store.write("k", value, expected=record.version)
            except Conflict:
                continue
            told += 1
        return told

    killer = asyncio.create_task(kill())
    try:
        counts = await asyncio.gather(
            *(count(store) for store in (line.near, line.far) for _ in range(2))
        )
    finally:
        done.set()
        await killer
    assert int((await line.near.read("k")).value) == sum(counts) == 60


async def test_a_watch_goes_on_over_broken_lines(line: Line, postgres: Postgres) -> None:
    seen: list[Change] = []

    async def follow() -> None:
        async with contextlib.aclosing(line.far.watch(revision=0)) as changes:
            async for change in changes:
                seen.append(change)
                if len(seen) == 60:
                    return

    following = asyncio.create_task(follow())
    for i in range(59):
        await line.near.write(str(i), b"")
        if i % 10 == 0:
            line.between.cut()
    await asyncio.wait_for(following, 20)
    assert [change.revision for change in seen] == list(range(1, 61))


# -- the server dies -----------------------------------------------------------------------------


async def test_what_was_acknowledged_survives_a_crash_of_the_server() -> None:
    with server(fsync=True) as up:
        async with PostgresStore(up.url(), patience=15) as store:
            told: dict[str, int] = {}
            unknown = 0
            done = asyncio.Event()

            async def write(part: int) -> None:
                nonlocal unknown
                i = 0
                while not done.is_set():
                    key, i = f"{part}-{i}", i + 1
                    try:
                        told[key] = (await store.write(key, b"x" * 100)).version
                    except MicroError:
                        unknown += 1

            seen: list[Change] = []

            async def follow() -> None:
                async with contextlib.aclosing(store.watch(revision=0)) as changes:
                    async for change in changes:
                        seen.append(change)

            tasks = [asyncio.create_task(write(part)) for part in range(6)]
            tasks.append(asyncio.create_task(follow()))
            for _ in range(2):
                before = len(told)
                await eventually(lambda before=before: len(told) > before + 30, within=20)  # type: ignore[misc]
                await asyncio.to_thread(up.kill)
                await asyncio.to_thread(up.start)
            before = len(told)
            await eventually(lambda: len(told) > before + 30, within=20)
            done.set()
            await asyncio.gather(*tasks[:-1])
            newest = await store.revision()
            await eventually(lambda: len(seen) == newest)
            tasks[-1].cancel()
            await asyncio.gather(tasks[-1], return_exceptions=True)
            found = {record.key: record.version for record in await store.query()}
    assert told.items() <= found.items()
    assert len(set(told.values())) == len(told)
    assert len(found) - len(told) <= unknown
    assert [change.revision for change in seen] == list(range(1, newest + 1))


async def test_a_server_that_is_gone_is_said_to_be_gone() -> None:
    with server() as up:
        async with PostgresStore(up.url(), patience=0.5) as store:
            await store.write("k", b"1")
            up.stop()
            for verb in (
                store.read("k"), store.write("k", b"2"), store.keys(), store.revision(),
                store.transact([Put(key="l", value=b"")]), store.blobs(),
            ):  # fmt: skip
                with pytest.raises(Unavailable, match=f"127.0.0.1:{up.port}.*try again"):
                    await asyncio.wait_for(verb, 15)
            await asyncio.to_thread(up.start)
            assert (await eventually(lambda: store.read("k"), within=10)).value == b"1"
            assert await store.keys() == ["k"]
