"""Reads and plain writes of a store on PostgreSQL that go together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from micro_ray.errors import Conflict, NotFound, Unavailable
from micro_ray.store import Action, Check, Put
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.postgres_reads import GROUP
from micro_ray.store.postgres_writes import IDLE
from tests.fixtures.postgres import Postgres, plain, schema
from tests.fixtures.wait import eventually


@pytest.fixture
async def name(postgres: Postgres) -> AsyncIterator[str]:
    async with schema(postgres.url()) as made:
        yield made


@pytest.fixture(params=["server", "query"])
async def kept(
    postgres: Postgres, name: str, request: pytest.FixtureRequest
) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(postgres.url(name), isolation=request.param) as store:
        await store.write("first", b"")  # the table is entered
        yield store


@pytest.fixture
def asked(kept: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that are sent, or are in the functions that are; connections have theirs sent
    by cursors."""
    found: list[str] = []
    real = psycopg.AsyncCursor.execute

    def spy(self: Any, query: Any, *args: Any, **more: Any) -> Any:
        found.append(plain(kept, query).strip())
        return real(self, query, *args, **more)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", spy)
    return found


async def test_reads_that_wait_are_one_statement(kept: PostgresStore, asked: list[str]) -> None:
    for i in range(5):
        await kept.write(f"k{i}", str(i).encode())
    asked.clear()
    keys = [f"k{i % 6}" for i in range(GROUP)]
    found = await asyncio.gather(*(kept.read(key) for key in keys), return_exceptions=True)
    for key, record in zip(keys, found, strict=True):
        if key == "k5":
            assert isinstance(record, NotFound)
            assert "'k5'" in record.detail
        else:
            assert not isinstance(record, BaseException)
            assert (record.key, record.value) == (key, key[1:].encode())
    assert len([sql for sql in asked if "micro_store_records" in sql]) == 2


async def test_large_values_are_read_few_at_a_time(kept: PostgresStore, asked: list[str]) -> None:
    for i in range(4):
        await kept.write(f"k{i}", bytes(2 * 2**20))
    await kept.read("k0")
    asked.clear()
    await asyncio.gather(*(kept.read(f"k{i % 4}") for i in range(9)))
    assert len([sql for sql in asked if "micro_store_records" in sql]) == 5  # 1, then two each


async def test_a_reader_that_leads_may_leave(kept: PostgresStore) -> None:
    await kept.write("k", b"v")
    leads = asyncio.create_task(kept.read("k"))
    await asyncio.sleep(0)
    follow = [asyncio.create_task(kept.read("k")) for _ in range(3)]
    await asyncio.sleep(0)
    leads.cancel()
    follow[0].cancel()
    done = await asyncio.gather(leads, *follow, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in done] == [True, True, False, False]
    assert (await kept.read("k")).value == b"v"


async def test_all_of_a_group_learn_what_went_wrong(postgres: Postgres, name: str) -> None:
    async with PostgresStore(postgres.url(name), patience=0.2) as store:
        await store.write("k", b"v")
        postgres.run(f"ALTER TABLE {name}.micro_store_records RENAME TO away")
        reads = (store.read("k") for _ in range(5))
        done = await asyncio.gather(*reads, return_exceptions=True)
        assert len(done) == 5
        assert not [one for one in done if not isinstance(one, Exception)]
        assert not [one for one in done if isinstance(one, NotFound)]
        postgres.run(f"ALTER TABLE {name}.away RENAME TO micro_store_records")
        assert (await store.read("k")).value == b"v"


async def test_a_read_sees_the_write_before_it(postgres: Postgres, name: str) -> None:
    """Also of another process, while statements of others are under way."""
    async with PostgresStore(postgres.url(name)) as one, PostgresStore(postgres.url(name)) as two:
        await one.write("k", b"0")
        noise = [asyncio.create_task(_read_on(two)) for _ in range(4)]
        for i in range(1, 100):
            await one.write("k", str(i).encode())
            assert (await two.read("k")).value == str(i).encode()
        for task in noise:
            task.cancel()
        await asyncio.gather(*noise, return_exceptions=True)


async def _read_on(store: PostgresStore) -> None:
    while True:
        await store.read("k")


async def test_plain_puts_are_one_statement(kept: PostgresStore, asked: list[str]) -> None:
    before = (await kept.write("k", b"")).version  # which also makes the connection
    asked.clear()
    version = (await kept.write("k", b"v", metadata={"a": "b"}, expiry=60)).version
    assert version == before + 1
    assert [sql.split()[0] for sql in asked] == ["WITH"]
    record = await kept.read("k")
    assert (record.value, record.metadata, record.version) == (b"v", {"a": "b"}, version)
    assert record.expiry is not None
    assert 50 < record.expiry <= 60


async def test_puts_of_one_key_in_one_group(kept: PostgresStore) -> None:
    """Each has its version and its change; the last one stays."""
    before = await kept.revision()
    first = asyncio.create_task(kept.write("other", b""))
    await asyncio.sleep(0)
    puts = [asyncio.create_task(kept.write("k", str(i).encode())) for i in range(20)]
    both = [Put(key="k", value=b"x"), Put(key="l", value=b"y")]
    last = asyncio.create_task(kept.transact(both))
    versions = [(await task).version for task in (first, *puts)]
    assert versions == list(range(before + 1, before + 22))
    assert await last == [before + 22, before + 23]
    assert ((await kept.read("k")).value, (await kept.read("k")).version) == (b"x", before + 22)
    seen = []
    async for change in kept.watch(revision=before):
        seen.append((change.revision, change.action, change.key))
        if len(seen) == 23:
            break
    keys = ["other", *["k"] * 21, "l"]
    assert seen == [(before + 1 + i, Action.PUT, key) for i, key in enumerate(keys)]


async def test_what_depends_on_something_goes_the_other_way(
    kept: PostgresStore, asked: list[str]
) -> None:
    version = (await kept.write("k", b"v")).version
    asked.clear()
    with pytest.raises(Conflict):
        await kept.write("k", b"w", expected=version + 1)
    with pytest.raises(Conflict):
        await kept.transact([Put(key="k", value=b"w"), Check(key="x", expected=1)])
    await kept.write("k", b"v", table="unheard-of")
    assert not [sql for sql in asked if sql.startswith("WITH")]
    assert await kept.tables() == ["micro", "unheard-of"]
    assert (await kept.read("k")).version == version


async def test_marks_come_in_the_order_of_commits(
    kept: PostgresStore, postgres: Postgres, name: str
) -> None:
    """Those of one process, alone and in groups: so they go to the end of what it has in the index.
    No two are alike, whoever made them."""
    async with PostgresStore(postgres.url(name)) as other:
        await other.write("k", b"")
        for _ in range(20):
            await kept.write("k", b"")
            await asyncio.gather(*(kept.write(f"k{i}", b"") for i in range(3)))
            await other.write("k", b"")
    async with await psycopg.AsyncConnection.connect(postgres.url(name)) as connection:
        await connection.execute("SET micro.namespace = 'micro'")
        rows = await connection.execute(
            "SELECT id FROM micro_store_commits WHERE number IS NOT NULL ORDER BY number"
        )
        ids = [row[0] for row in await rows.fetchall()]
    whose = {id[:24] for id in ids}
    assert len(whose) == 2
    for one in whose:
        mine = [id for id in ids if id.startswith(one)]
        assert len(mine) >= 20
        assert mine == sorted(mine)
    assert len(set(ids)) == len(ids)


async def test_tasks_that_wait_for_writes_are_few(kept: PostgresStore) -> None:
    """Whatever the number of namespaces; one whose task has ended is written all the same."""

    def tasks() -> int:
        return sum(t.get_name().startswith("store-write ") for t in asyncio.all_tasks())

    spaces = [f"s{i}" for i in range(IDLE + 10)]
    await asyncio.gather(*(kept.write("k", b"1", namespace=space) for space in spaces))
    await eventually(lambda: tasks() <= IDLE)
    for space in spaces:
        assert (await kept.write("k", b"2", namespace=space)).version == 2
    await eventually(lambda: tasks() <= IDLE)
    await kept.close()
    assert tasks() == 0


async def test_a_write_whose_task_was_just_told_to_end(
    kept: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to one namespace's write comes just before the task of the other is told to end,
    and the next write before it has ended: it does that first."""
    monkeypatch.setattr("micro_ray.store.postgres_writes.IDLE", 1)
    for number in range(1, 20):
        for space in ("a", "b"):
            assert (await kept.write("k", b"", namespace=space)).version == number
    together = await asyncio.gather(
        *(kept.write("k", b"", namespace=space) for space in ("a", "b") for _ in range(3))
    )
    assert [record.version for record in together] == [20, 21, 22] * 2


async def test_processes_that_put_at_once(postgres: Postgres, name: str) -> None:
    """Versions are dense, none is given twice."""
    stores = [PostgresStore(postgres.url(name)) for _ in range(3)]
    async with stores[0], stores[1], stores[2]:
        for store in stores:
            await store.write("first", b"")
        before = await stores[0].revision()

        async def write(store: PostgresStore, key: str) -> list[int]:
            return [(await store.write(key, b"")).version for _ in range(30)]

        given = await asyncio.gather(*(write(s, f"k{i}") for i, s in enumerate(stores)))
        assert sorted(itertools.chain(*given)) == list(range(before + 1, before + 91))
        assert all(versions == sorted(versions) for versions in given)


async def test_a_closed_store_reads_nothing(postgres: Postgres, name: str) -> None:
    async with PostgresStore(postgres.url(name)) as store:
        await store.write("k", b"v")
        reads = [asyncio.create_task(store.read("k")) for _ in range(5)]
        await asyncio.sleep(0)
    for done in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(done, Unavailable) or done.value == b"v"  # type: ignore[union-attr]
    with pytest.raises(Unavailable):
        await store.read("k")
