"""What a store on PostgreSQL asks of the server: plans, sweeps, groups."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import psycopg
import pytest

from micro_ray.errors import Conflict, NotFound, Unavailable
from micro_ray.store import HISTORY, Check, Delete, Put
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.postgres_plan import Found, Job, plan
from tests.fixtures.postgres import Postgres, plain, schema
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually


@pytest.fixture
async def name(postgres: Postgres) -> AsyncIterator[str]:
    async with schema(postgres.url()) as made:
        yield made


@pytest.fixture(params=["server", "query"])
async def kept(
    postgres: Postgres, name: str, request: pytest.FixtureRequest
) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(postgres.url(name), isolation=request.param) as store:
        yield store


@pytest.mark.parametrize("verb", ["read", "query", "keys", "sweep", "watch", "write"])
async def test_an_index_is_used(
    postgres: Postgres, name: str, kept: PostgresStore, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very statements, explained by the server over 20,000 records of which few are meant."""
    postgres.run(
        f"INSERT INTO {name}.micro_store_records SELECT 'micro', 'micro', 'micro',"
        " 'p' || i, '', '{}', CASE WHEN i % 100 = 0 THEN 4e9 END, i"
        " FROM generate_series(1, 20000) i"
    )
    postgres.run(
        f"INSERT INTO {name}.micro_store_changes (namespace, db, tbl, key, revision, action)"
        " SELECT 'micro', 'micro', 'micro', 'p' || i, i, 'put' FROM generate_series(1, 20000) i"
    )
    postgres.run(f"INSERT INTO {name}.micro_store_counters VALUES ('micro', 20000)")
    postgres.run(f"ANALYZE {name}.micro_store_records")
    postgres.run(f"ANALYZE {name}.micro_store_changes")
    asked: list[tuple[str, object]] = []
    for kind in (psycopg.AsyncCursor, psycopg.AsyncConnection):
        for method in ("execute", "stream"):
            real = getattr(kind, method, None)
            if real is not None:

                def spy(self, query, params=None, *, real=real, **more):  # type: ignore[no-untyped-def]
                    asked.append((plain(kept, query), params))
                    return real(self, query, params, **more)

                monkeypatch.setattr(kind, method, spy)
    if verb == "read":
        await kept.read("p77")
    elif verb in ("query", "keys"):
        found = await getattr(kept, verb)(prefix="p777", suffix="7")
        assert len(found) == 2
    elif verb == "sweep":
        await kept.sweep()
    elif verb == "write":
        await kept.transact([Put(key="p77", value=b""), Delete(key="p78")])
    else:
        async with contextlib.aclosing(kept.watch(revision=19_990)) as changes:
            assert (await anext(changes)).revision == 19_991
    monkeypatch.undo()
    big = [a for a in asked if re.match(r"(SELECT|DELETE).*micro_store_(records|changes)", a[0])]
    assert big
    async with await psycopg.AsyncConnection.connect(postgres.url(name)) as connection:
        await connection.execute(f"SET micro.namespace = '{'*' if verb == 'sweep' else 'micro'}'")
        for sql, values in big:
            cursor = await connection.execute(f"EXPLAIN {sql}", values)  # type: ignore[arg-type]
            text = "\n".join(row[0] for row in await cursor.fetchall())
            assert "Index" in text, text
            assert "Seq Scan" not in text, text
            if verb in ("query", "keys"):
                assert re.search(r"Index Cond: .*key >= 'p777'.*key < 'p778'", text), text
                assert "Sort" not in text, text


async def test_an_index_is_used_in_functions(postgres: Postgres, name: str) -> None:
    """Also once the server has planned them for whatever their parameters may be."""
    async with PostgresStore(postgres.url(name), connections=1, isolation="server") as store:
        postgres.run(
            f"INSERT INTO {name}.micro_store_records SELECT 'micro', 'micro', 'micro',"
            " 'p' || i, '', '{}', NULL, i FROM generate_series(1, 20000) i"
        )
        postgres.run(f"ANALYZE {name}.micro_store_records")
        scans = (
            "SELECT seq_scan, idx_scan FROM pg_stat_user_tables"
            f" WHERE relid = '{name}.micro_store_records'::regclass"
        )
        ((before, _),) = postgres.run(scans)
        for _ in range(20):
            await store.read("p77")
            await asyncio.gather(*(store.read(f"p{i}") for i in range(1, 51)))
            for order in ("asc", "desc"):
                assert len(await store.query(prefix="p777", suffix="7", order=order)) == 2
                assert len(await store.keys(prefix="p", limit=3, order=order)) == 3
        await eventually(lambda: _many(postgres.run(scans)))  # told once a second
        ((after, _),) = postgres.run(scans)
        assert after == before


def _many(rows: list[tuple[object, ...]]) -> bool:
    ((_, found),) = rows
    return isinstance(found, int) and found >= 100


async def test_several_sweep_at_once(postgres: Postgres, name: str) -> None:
    """What expires is told once, whoever removes it."""
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(PostgresStore(postgres.url(name), clock=clock))
            for _ in range(4)
        ]
        for space in ("a", "b"):
            await stores[0].transact(
                [Put(key=str(i), value=b"", expiry=5) for i in range(50)], namespace=space
            )
            await stores[0].transact(
                [Put(key=f"stays{i}", value=b"", expiry=50) for i in range(10)], namespace=space
            )
        clock.now += 5
        await asyncio.gather(*(store.sweep() for store in stores))
        for space in ("a", "b"):
            assert await stores[1].revision(namespace=space) == 110
            assert len(await stores[2].keys(namespace=space)) == 10
    rows = postgres.run(f"SELECT count(*) FROM {name}.micro_store_records")
    assert rows == [(20,)]


async def test_the_servers_time_counts(kept: PostgresStore) -> None:
    """Without a clock of ours nothing depends on this machine's."""
    await kept.write("k", b"1", expiry=0.2)
    left = (await kept.read("k")).expiry
    assert left is not None
    assert 0 < left <= 0.2

    async def gone() -> bool:
        try:
            await kept.read("k")
        except NotFound:
            return True
        return False

    await eventually(gone)
    # The sweeper tells watchers by itself.
    async with contextlib.aclosing(kept.watch(revision=1)) as changes:
        change = await asyncio.wait_for(anext(changes), 10)
    assert (change.revision, change.action.value) == (2, "delete")


async def test_the_history_is_bounded(postgres: Postgres, name: str, kept: PostgresStore) -> None:
    await kept.write("k", b"")
    postgres.run(f"UPDATE {name}.micro_store_counters SET revision = {HISTORY + 150}")
    postgres.run(
        f"INSERT INTO {name}.micro_store_changes (namespace, db, tbl, key, revision, action)"
        " SELECT 'micro', 'micro', 'micro', 'k', i, 'put'"
        f" FROM generate_series(2, {HISTORY + 150}) i"
    )
    await kept.transact([Put(key=str(i), value=b"") for i in range(100)])
    kept_rows = f"SELECT count(*), min(revision) FROM {name}.micro_store_changes"
    await eventually(lambda: postgres.run(kept_rows) == [(HISTORY, 251)], within=PROMPT)


async def test_leftovers_are_swept(postgres: Postgres, name: str, kept: PostgresStore) -> None:
    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        raise RuntimeError("the source broke")

    await kept.write_blob("k", pieces(b"1" * 300_000))
    with pytest.raises(RuntimeError):
        await kept.write_blob("k", breaks())
    await kept.write_blob("k", pieces(b"2" * 300_000))
    ids = f"SELECT count(DISTINCT id) FROM {name}.micro_store_pieces"
    assert postgres.run(ids) == [(3,)]
    await kept.sweep_leftovers()
    assert postgres.run(ids) == [(2,)], "the half one goes at once, the replaced one later"
    reading = kept.read_blob("k")
    first = await anext(reading)
    await kept.write_blob("k", pieces(b"3"))
    await kept.sweep_leftovers()
    rest = first + b"".join([piece async for piece in reading])
    assert rest == b"2" * 300_000, "who reads can finish"
    postgres.run(f"UPDATE {name}.micro_store_leftovers SET due = now()")
    postgres.run(f"UPDATE {name}.micro_store_commits SET at = now() - '1 hour'::interval")
    await kept.sweep_leftovers()
    assert postgres.run(ids) == [(1,)]
    left = postgres.run(f"SELECT count(*) FROM {name}.micro_store_commits")
    assert left[0][0] <= 1, "at most the mark of the sweep itself"  # type: ignore[operator]
    assert b"".join([piece async for piece in kept.read_blob("k")]) == b"3"


async def test_waiting_writes_share_commits(
    postgres: Postgres, name: str, kept: PostgresStore
) -> None:
    await asyncio.gather(*(kept.write(str(i), b"") for i in range(500)))
    ((commits,),) = postgres.run(f"SELECT count(*) FROM {name}.micro_store_commits")
    assert commits <= 20  # type: ignore[operator]
    assert await kept.revision() == 500


async def test_waiting_writes_are_bounded(
    kept: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_ray.store.postgres_writes.WAITING", 10)
    outcomes = await asyncio.gather(
        *(kept.write(str(i), b"") for i in range(30)), return_exceptions=True
    )
    refused = [o for o in outcomes if isinstance(o, Unavailable)]
    assert len(refused) == 20
    assert "10 writes" in str(refused[0])
    assert len(await kept.keys()) == 10


async def test_a_cancelled_write_is_done_all_the_same(kept: PostgresStore) -> None:
    writing = asyncio.create_task(kept.write("k", b"1"))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await eventually(lambda: kept.read("k"))


# -- deciding ------------------------------------------------------------------------------------


def test_a_refused_job_takes_nothing_with_it() -> None:
    found = {("d", "micro", "a"): Found(3, None), ("d", "micro", "old"): Found(2, 10.0)}
    jobs = [
        Job(database="d", operations=[Put(key="a", value=b"1", expected=3)]),
        Job(
            database="d",
            operations=[Put(key="b", value=b"", expected=0), Check(key="a", expected=3)],
        ),
        Job(database="d", operations=[Check(key="b", expected=0), Delete(key="a", expected=8)]),
        Job(database="d", operations=[Put(key="old", value=b"", expected=0, expiry=5)]),
        Job(expired=[("d", "micro", "old"), ("d", "micro", "none")]),
    ]
    made = plan(jobs, found, 7, now=10.0)
    first, second, *rest = made.answers
    assert first == [8]
    assert isinstance(second, Conflict)
    assert rest == [[0, 0], [10], []]
    assert made.revision == 10
    assert [(c.revision, c.action.value, c.key) for c in made.changes] == [
        (8, "put", "a"), (9, "delete", "a"), (10, "put", "old"),
    ]  # fmt: skip
    assert made.rows["d", "micro", "a"] is None
    assert ("d", "micro", "b") not in made.rows
    row = made.rows["d", "micro", "old"]
    assert row is not None
    assert (row.expires, row.version) == (15.0, 10)
