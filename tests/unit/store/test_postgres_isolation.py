"""Namespaces that PostgreSQL itself keeps apart: what a statement of ours that is wrong may do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from micro_ray.errors import Conflict, NotFound, PreconditionFailed, TooLarge
from micro_ray.store import MAX_VALUE, Put
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.postgres_connection import Connection, Cursor
from micro_ray.store.postgres_database import WRITING
from micro_ray.store.postgres_isolation import EVERYTHING, TABLES, release
from tests.fixtures.postgres import ADMIN, USER, Postgres, schema
from tests.fixtures.wait import eventually


@pytest.fixture
async def name(postgres: Postgres) -> AsyncIterator[str]:
    async with schema(postgres.url()) as made:
        yield made


@pytest.fixture
async def kept(postgres: Postgres, name: str) -> AsyncIterator[PostgresStore]:
    """One with something of two namespaces in each table."""
    async with PostgresStore(postgres.url(name), isolation="server") as store:
        for space in ("acme", "other"):
            await fill(store, space)
        yield store


async def fill(store: PostgresStore, space: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield space.encode()

    await store.write("k", space.encode(), namespace=space)
    for _ in range(2):  # the first is among the leftovers then
        await store.write_blob("b", chunks(), namespace=space)


async def ask(store: PostgresStore, space: str, sql: Any) -> tuple[list[Any], int]:
    """A statement as the store sends them, whatever it is: its rows and how many it touched."""

    async def job(connection: Connection) -> tuple[list[Any], int]:
        cursor = await connection.execute(sql)
        return await cursor.fetchall() if cursor.description else [], cursor.rowcount

    return await store._database.ask(space, job)


@pytest.mark.parametrize("table", TABLES)
async def test_a_statement_without_where_stays_in_its_namespace(
    postgres: Postgres, name: str, kept: PostgresStore, table: str
) -> None:
    every = f"SELECT namespace, count(*) FROM {name}.{table} GROUP BY namespace ORDER BY namespace"
    before = dict(postgres.run(every))
    assert set(before) == {"acme", "other"}
    rows, _ = await ask(kept, "acme", f"SELECT DISTINCT namespace FROM {table}")
    assert rows == [("acme",)]
    assert (await ask(kept, "acme", f"SELECT FROM {table} WHERE namespace = 'other'"))[1] == 0
    assert (await ask(kept, "acme", f"DELETE FROM {table} WHERE namespace = 'other'"))[1] == 0
    _, touched = await ask(kept, "acme", f"UPDATE {table} SET namespace = namespace")
    assert touched == before["acme"]
    with pytest.raises(Exception, match="row-level security"):
        await ask(kept, "acme", f"UPDATE {table} SET namespace = 'other'")
    assert dict(postgres.run(every)) == before
    await ask(kept, "acme", f"DELETE FROM {table}")
    assert dict(postgres.run(every)) == {"other": before["other"]}


@pytest.mark.parametrize("table", TABLES)
async def test_what_acts_on_all_says_so(kept: PostgresStore, table: str) -> None:
    rows, _ = await ask(kept, EVERYTHING, f"SELECT DISTINCT namespace FROM {table}")
    assert {row[0] for row in rows} == {"acme", "other"}


async def test_a_transaction_stays_in_its_namespace(kept: PostgresStore) -> None:
    async def job(connection: Connection) -> tuple[int, bool]:
        gone = await connection.execute("DELETE FROM micro_store_records")
        await connection.execute("SELECT 1")
        return gone.rowcount, True

    await kept._database.transact("acme", job)
    with pytest.raises(NotFound):
        await kept.read("k", namespace="acme")
    assert (await kept.read("k", namespace="other")).value == b"other"


@pytest.mark.parametrize("isolation", ["server", "query"])
async def test_writes_are_serializable(postgres: Postgres, name: str, isolation: str) -> None:
    """Both kinds of them; so is who comes first to a namespace."""
    shown = "SELECT current_setting('transaction_isolation')"

    async def look(connection: Connection) -> tuple[str, bool]:
        row = await (await connection.execute(shown)).fetchone()
        return row[0], True

    async def put(connection: Connection, mark: str) -> int | None:
        row = await (await connection.execute(shown)).fetchone()
        assert row == ("serializable",)
        return None

    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(PostgresStore(postgres.url(name), isolation=isolation))
            for _ in range(4)
        ]
        assert await stores[0]._database.transact("acme", look) == "serializable"
        await stores[0]._database.put("acme", put)
        for turn in range(20):
            space = f"new{turn}"
            first = (
                store.transact([Put(key="k", value=b"", expected=0)], namespace=space)
                for store in stores
            )
            done = await asyncio.gather(*first, return_exceptions=True)
            assert sorted(isinstance(one, Conflict) for one in done) == [False, True, True, True]


async def test_who_forgets_to_say_is_refused(kept: PostgresStore) -> None:
    """Rather than shown an empty store."""
    async with kept._database._pool.connection(asyncio.get_running_loop().time() + 5, None) as one:
        for table in TABLES:
            with pytest.raises(psycopg.errors.UndefinedObject, match=r"micro\.namespace is blank"):
                await one.execute(f"SELECT FROM {table}")


async def test_nothing_stays_on_a_connection(postgres: Postgres, name: str) -> None:
    """After each verb, whatever its end, the connection is about nobody."""
    shown = "SELECT current_setting('micro.namespace')"

    async def chunks() -> AsyncIterator[bytes]:
        yield b"blob"

    async with PostgresStore(postgres.url(name), connections=1, isolation="server") as store:

        async def about() -> None:
            for pool in (store._database._pool, store._database._writing):
                end = asyncio.get_running_loop().time() + 5
                async with pool.connection(end, None) as one:
                    assert await (await one.execute(shown)).fetchone() == ("",)

        await store.write("k", b"1", namespace="a")
        for verb in (
            lambda: store.write("k", b"2", namespace="a"),
            lambda: store.read("k", namespace="a"),
            lambda: store.query(namespace="a"),
            lambda: store.query(prefix="k", order="desc", namespace="a"),
            lambda: store.keys(namespace="a"),
            lambda: store.revision(namespace="a"),
            lambda: store.usage(namespace="a"),
            lambda: store.delete("k", namespace="a"),
            lambda: store.write_blob("b", chunks(), namespace="a"),
            lambda: store.blobs(namespace="a"),
            lambda: store.delete_blob("b", namespace="a"),
            store.sweep,
            store.sweep_leftovers,
        ):
            await verb()
            await about()
        with pytest.raises(Conflict):
            await store.transact([Put(key="k", value=b"", expected=999)], namespace="a")
        await about()


async def test_the_functions_say_whose_they_are(
    postgres: Postgres, name: str, kept: PostgresStore
) -> None:
    """Asked for what is another's they have nothing, whatever their other parameters are."""
    (read, *_) = kept._reads.statements
    place = {"db": "micro", "tbl": "micro", "now": 0.0}
    for about, ns, found in (("acme", "acme", 1), ("acme", "other", 0), ("other", "acme", 0)):

        async def job(connection: Connection, ns: str = ns) -> list[Any]:
            cursor = connection.cursor()
            await connection.run(read, {**place, "ns": ns, "key": "k"}, cursor)
            return await cursor.fetchall()

        assert len(await kept._database.ask(about, job)) == found

    async def put(connection: Connection, mark: str) -> int | None:
        values = {"ns": "other", "db": "micro", "tbl": "micro", "key": "x", "value": b""}
        values |= {"metadata": "{}", "expiry": None, "now": 0.0, "count": 1, "mark": mark}
        await connection.run(kept._writes.statements[0], values, connection.cursor())
        return None

    await kept._database.put("acme", put)
    assert await kept.revision(namespace="other") == 1, "its counter is not to be seen, so nothing"
    assert await kept.keys(namespace="other") == ["k"]


@pytest.mark.parametrize("connections", [1, 3])
async def test_many_namespaces_over_few_connections(
    postgres: Postgres, name: str, connections: int
) -> None:
    """All verbs at once, with some that fail: each has its own, and there are no more connections
    than was said."""
    spaces = [f"s{i}" for i in range(12)]

    async def one(store: PostgresStore, space: str) -> None:
        mine = space.encode()
        for turn in range(5):
            await store.write("k", mine, namespace=space)
            await store.transact([Put(key="t", value=mine)], namespace=space)
            with pytest.raises(Conflict):
                await store.transact([Put(key="k", value=b"", expected=999)], namespace=space)
            assert (await store.read("k", namespace=space)).value == mine
            with pytest.raises(NotFound):
                await store.read("none", namespace=space)
            assert {r.value for r in await store.query(namespace=space)} == {mine}
            await fill(store, space)
            read = [piece async for piece in store.read_blob("b", namespace=space)]
            assert b"".join(read) == mine
            assert await store.revision(namespace=space) == 3 * (turn + 1)

    url = postgres.url(name) + "&application_name=" + name
    async with PostgresStore(url, connections=connections) as store:
        await asyncio.gather(*(one(store, space) for space in spaces))
        ((count,),) = postgres.run(
            f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
        )
        assert isinstance(count, int)
        assert count <= connections + WRITING


async def test_after_a_statement_that_failed(kept: PostgresStore) -> None:
    """What the server was told with it is taken back, and told again."""
    for space in ("acme", "other", "acme"):
        with pytest.raises(Exception, match="division"):
            await ask(kept, space, "SELECT 1 / 0")
        assert (await kept.read("k", namespace=space)).value == space.encode()


@pytest.mark.parametrize("contends", [False, True])
async def test_a_connection_says_it_each_time(postgres: Postgres, contends: bool) -> None:
    """The same connection, by hand; also in the way of CockroachDB, whose commits may fail."""
    async with await Connection.connect(
        postgres.url(), autocommit=True, cursor_factory=Cursor
    ) as connection:
        connection.contends = contends
        shown = "SELECT current_setting('micro.namespace', true)"
        for about in ("a", "b"):
            connection.about = about
            assert await (await connection.execute(shown)).fetchone() == (about,)
        connection.about = "c"
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
        assert connection.about == "c"
        await connection.rollback()
        assert [row async for row in connection.cursor().stream(shown)] == [("c",)]
        assert await (await connection.execute(shown)).fetchone() == ("c",)
        connection.about = "d"
        async with connection.pipeline():
            await connection.begin("BEGIN")
            inside = await connection.execute(shown)
            await connection.execute("ROLLBACK")
        assert await inside.fetchone() == ("d",)
        assert await (await connection.execute(shown)).fetchone() == ("",)


async def test_a_listing_that_is_left_early(postgres: Postgres, name: str) -> None:
    """It is larger than an answer may be: the connection serves the next."""
    async with PostgresStore(postgres.url(name), connections=1, isolation="server") as store:
        for key in "abcde":
            await store.write(key, bytes(MAX_VALUE), namespace="acme")
        for _ in range(2):
            with pytest.raises(TooLarge):
                await store.query(namespace="acme")
            assert len(await store.keys(namespace="acme")) == 5


# -- how it comes to be --------------------------------------------------------------------------


async def test_a_schema_of_before_is_brought_up_to_date(postgres: Postgres, name: str) -> None:
    """With blobs, whose pieces did not say whose they are: the sweep enters it."""
    async with PostgresStore(postgres.url(name), isolation="query") as store:
        await fill(store, "acme")
    before(postgres, name)
    async with PostgresStore(postgres.url(name), isolation="server") as store:
        assert [p async for p in store.read_blob("b", namespace="acme")] == [b"acme"]
        count = "SELECT FROM micro_store_pieces"
        assert (await ask(store, "other", count))[1] == 2, "nobody's yet, by ids that nobody knows"
        await store.sweep_leftovers()
        assert (await ask(store, "other", count))[1] == 1, "what no blob has goes with its time"
        assert [p async for p in store.read_blob("b", namespace="acme")] == [b"acme"]


async def test_members_of_before_go_on(postgres: Postgres, name: str) -> None:
    """They know nothing of the setting nor of the columns, until they are replaced."""
    async with PostgresStore(postgres.url(name), isolation="query") as old:
        await fill(old, "acme")
        async with PostgresStore(postgres.url(name), isolation="server") as new:
            await old.write("k", b"old", namespace="acme")
            await old.write("k2", b"old", namespace="other")
            assert (await new.read("k", namespace="acme")).value == b"old"
            await new.write("k", b"new", namespace="acme")
            assert (await old.read("k", namespace="acme")).value == b"new"
            ((id,),) = postgres.run(f"SELECT id FROM {name}.micro_store_blobs")
            values = f"('{id}', 1, ''), ('00', 0, '')"
            with psycopg.connect(postgres.url(name), autocommit=True) as raw:
                raw.execute("INSERT INTO micro_store_commits (id, done) VALUES ('00', true)")
                raw.execute(f"INSERT INTO micro_store_pieces (id, at, data) VALUES {values}")
                raw.execute("INSERT INTO micro_store_leftovers (id, due) VALUES ('00', now())")
            await new.sweep_leftovers()
            pieces = f"SELECT at, namespace FROM {name}.micro_store_pieces WHERE id = '{id}'"
            assert sorted(postgres.run(pieces)) == [(0, "acme"), (1, "acme")]
            gone = f"SELECT 1 FROM {name}.micro_store_pieces WHERE id = '00'"
            assert postgres.run(gone) == []


def before(postgres: Postgres, name: str) -> None:
    """Make the schema what version 2 was."""
    for table in ("commits", "pieces", "leftovers"):
        postgres.run(f"ALTER TABLE {name}.micro_store_{table} DROP COLUMN namespace")
    postgres.run(f"DELETE FROM {name}.micro_store_schema WHERE version > 2")


async def test_a_table_that_is_read_at_length(postgres: Postgres, name: str) -> None:
    """By a dump, say: it is waited for, and nobody behind it for long."""
    async with PostgresStore(postgres.url(name), isolation="query") as store:
        await store.write("k", b"1")
        async with await psycopg.AsyncConnection.connect(postgres.url(name)) as dump:
            await dump.execute("SELECT FROM micro_store_records")
            other = PostgresStore(postgres.url(name), isolation="server")
            starts = asyncio.create_task(other.__aenter__())
            waits = (
                "SELECT 1 FROM pg_locks WHERE NOT granted"
                f" AND relation = '{name}.micro_store_records'::regclass"
            )
            await eventually(lambda: bool(postgres.run(waits)))
            assert (await store.read("k")).value == b"1"
            assert not starts.done()
            await dump.rollback()
        async with await starts as late:
            assert any("row level security" in f.text for f in await late.examine())


async def test_a_policy_of_somebody_that_lets_more_through(
    postgres: Postgres, name: str, kept: PostgresStore
) -> None:
    postgres.run(f"CREATE POLICY all_of_them ON {name}.micro_store_records USING (true)")
    assert any("queries alone" in f.text and not f.good for f in await kept.examine())
    async with PostgresStore(postgres.url(name)) as store:
        assert any("all_of_them" in f.text and not f.good for f in await store.examine())


async def test_queries_alone_where_that_is_set(
    postgres: Postgres, name: str, kept: PostgresStore
) -> None:
    """Beside a member that has the server do it, too."""
    async with PostgresStore(postgres.url(name), isolation="query") as store:
        assert (await store.read("k", namespace="acme")).value == b"acme"
        assert (await store.read("k", namespace="other")).value == b"other"
        await store.write("k", b"2", namespace="acme")
        assert any("queries alone" in f.text and f.good for f in await store.examine())
    assert (await kept.read("k", namespace="acme")).value == b"2"


async def test_a_superuser_is_not_bound(
    postgres: Postgres, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.url(name, user=ADMIN)
    with pytest.raises(PreconditionFailed, match=r"store\.isolation.*superuser.*plain user"):
        await PostgresStore(url, isolation="server").__aenter__()
    async with PostgresStore(url) as store:
        await store.write("k", b"1", namespace="acme")
        assert (await store.read("k", namespace="acme")).value == b"1"
        assert any("superuser" in f.text and not f.good for f in await store.examine())
    assert "superuser" in caplog.text


async def test_a_user_who_does_not_own_the_tables(postgres: Postgres, name: str) -> None:
    async with PostgresStore(postgres.url(name), isolation="query") as store:
        await store.write("k", b"1")
    postgres.run("CREATE ROLE lodger LOGIN PASSWORD 'lodger'")
    try:
        postgres.run(f"GRANT ALL ON SCHEMA {name} TO lodger")
        postgres.run(f"GRANT ALL ON ALL TABLES IN SCHEMA {name} TO lodger")
        url = f"postgres://lodger:lodger@127{postgres.url(name).partition('@127')[2]}"
        with pytest.raises(PreconditionFailed, match="own its tables"):
            await PostgresStore(url, isolation="server").__aenter__()
        async with PostgresStore(url) as store:
            assert (await store.read("k")).value == b"1"
            assert any("may change its tables" in f.text for f in await store.examine())
        async with PostgresStore(postgres.url(name)):
            pass  # the owner has the server do it
        async with PostgresStore(url, isolation="server") as store:
            assert (await ask(store, "other", "SELECT FROM micro_store_records"))[1] == 0
    finally:
        postgres.run("DROP OWNED BY lodger")
        postgres.run("DROP ROLE lodger")


async def test_the_examination_says_who_keeps_them_apart(kept: PostgresStore) -> None:
    assert any("row level security" in f.text and f.good for f in await kept.examine())
    assert USER != ADMIN


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CockroachDB CCL v25.2.1 (x86_64-pc-linux-gnu, built ...)", (25, 2)),
        ("CockroachDB CCL v24.3.0-beta.1 (...)", (24, 3)),
        ("CockroachDB of somebody", ()),
    ],
)
def test_the_release_of_a_cockroach(text: str, found: tuple[int, ...]) -> None:
    assert release(text) == found


async def test_commits_that_fail_at_their_end_are_tried_again(postgres: Postgres) -> None:
    """Small tables and many namespaces: the server finds conflicts where there are none, some when
    a statement is done already."""
    async with schema(postgres.url()) as name, PostgresStore(postgres.url(name)) as store:
        spaces = [f"s{i}" for i in range(16)]
        for turn in range(40):
            await asyncio.gather(*(store.write("k", b"", namespace=space) for space in spaces))
            for space in spaces if turn % 10 == 9 else ():
                assert await store.revision(namespace=space) == turn + 1
