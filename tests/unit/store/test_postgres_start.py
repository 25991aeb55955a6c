"""How a store on PostgreSQL starts, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

import pytest

from micro_ray import settings
from micro_ray.actors.backends import open_store
from micro_ray.errors import BadRequest, MicroError, PreconditionFailed
from micro_ray.store import Put
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.postgres_schema import VERSION
from micro_ray.store.postgres_url import parse
from tests.fixtures.postgres import PASSWORD, Postgres, schema, server
from tests.fixtures.proxy import proxy
from tests.fixtures.wait import eventually

SECRETS = (PASSWORD, "p%40ss", "ss/w", "w:rd")


def hides_the_password(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgres://u:p@h:5/d", "postgres://h:5/d"),
        ("postgresql://u@h/d", "postgresql://h:5432/d"),
        ("cockroach://u:p@a:1,b:2/d?sslmode=require", "cockroach://a:1,b:2/d"),
        ("cockroachdb://u@[::1]:9/d", "cockroachdb://::1:9/d"),
        ("postgres:///d", "postgres://localhost:5432/d"),
    ],
)
def test_urls(url: str, name: str) -> None:
    target = parse(url)
    assert target.name == name
    assert target.options["dbname"] == "d"
    assert target.options.get("password") in ("p", None)
    assert ("read-write" in target.options.values()) is ("," in name)
    assert "'p'" not in repr(target)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://u:w:rd@h/d", "none of postgres"),
        ("postgres://", "none of postgres"),
        ("postgres://u:ss/w@h:1/d", "percent-encoded"),
        ("postgres://u:p@ss/w@h:1/d", "percent-encoded"),
        ("postgres://u:1/ss/w@h:1/d", "percent-encoded"),
        ("postgres://u:p%zzss/w@h/d", "percent-encoded"),
        ("postgres://u:w:rd@h/d?nonsense=1", "nonsense"),
        ("postgres://u:w:rd@h/d?sslmode", "percent-encoded"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        parse(url)
    assert hides_the_password(str(caught.value))


async def test_settings_choose_it(postgres: Postgres) -> None:
    given = settings.load(environ={})
    async with schema(postgres.url()) as name:
        for scheme in ("postgres", "postgresql", "cockroach", "cockroachdb"):
            url = postgres.url(name, scheme=scheme)
            async with open_store(replace(given, store=replace(given.store, url=url))) as store:
                assert isinstance(store, PostgresStore)
                await store.write(scheme, b"1")
        assert len(postgres.run(f"SELECT key FROM {name}.micro_store_records")) == 4
    bad = replace(given, store=replace(given.store, url=f"postgrse://u:{PASSWORD}@h/d"))
    with pytest.raises(BadRequest, match="'postgrse' is none of") as caught:
        async with open_store(bad):
            pass
    assert hides_the_password(str(caught.value))


async def refused(url: str) -> str:
    async def attempt() -> None:
        async with PostgresStore(url):
            pass

    with pytest.raises(MicroError) as caught:
        await asyncio.wait_for(attempt(), 20)
    return f"{type(caught.value).__name__} {caught.value}"


async def test_what_is_wrong_is_named(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    good = postgres.url()
    place = good.partition("@127")[2]
    cases = {
        f"postgres://micro:wrong@127{place}": ("BadRequest", "correct user and password"),
        f"postgres://nobody:wrong@127{place}": ("BadRequest", "correct user and password"),
        f"postgres://micro@127{place}": ("BadRequest", "correct user and password"),
        good.removesuffix("/postgres") + "/none": ("BadRequest", "create the database"),
        good + "?sslmode=require": ("BadRequest", "correct sslmode"),
        good + "?sslmode=verify-full&sslrootcert=/none": ("BadRequest", "correct sslmode"),
    }
    for url, words in cases.items():
        said = await refused(url)
        assert all(word in said for word in (*words, f"127.0.0.1:{postgres.port}")), said
        assert hides_the_password(said + caplog.text)


async def test_a_server_that_comes_later_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with server() as up:
        up.stop()
        store = PostgresStore(up.url())
        opening = asyncio.create_task(store.__aenter__())
        try:
            waiting = f"waiting for the store at postgres://127.0.0.1:{up.port}/postgres"
            await eventually(lambda: waiting in caplog.text)
            assert not opening.done()
            await asyncio.to_thread(up.start)
            await asyncio.wait_for(opening, 15)
            assert (await store.write("k", b"1")).version == 1
        finally:
            opening.cancel()
            await store.close()
    assert hides_the_password(caplog.text)


# -- the schema ----------------------------------------------------------------------------------


def _versions(postgres: Postgres, name: str) -> list[int]:
    return sorted(v for (v,) in postgres.run(f"SELECT version FROM {name}.micro_store_schema"))


async def test_a_schema_of_version_1_is_brought_up_to_date(postgres: Postgres) -> None:
    async with schema(postgres.url()) as name:
        async with PostgresStore(postgres.url(name)) as store:
            await store.write("k", b"1")
        postgres.run(f"ALTER TABLE {name}.micro_store_commits DROP COLUMN number")
        postgres.run(f"DELETE FROM {name}.micro_store_schema WHERE version > 1")
        async with contextlib.AsyncExitStack() as stack:
            stores = [PostgresStore(postgres.url(name)) for _ in range(4)]
            await asyncio.gather(*(stack.enter_async_context(store) for store in stores))
            assert (await stores[0].read("k")).value == b"1"
            await asyncio.gather(*(store.write("k", b"2") for store in stores))
            assert await stores[0].revision() == 5
        assert _versions(postgres, name) == list(range(1, VERSION + 1))


async def test_many_replicas_make_the_schema_at_once(postgres: Postgres) -> None:
    async with schema(postgres.url()) as name, contextlib.AsyncExitStack() as stack:
        stores = [PostgresStore(postgres.url(name), connections=2) for _ in range(8)]
        await asyncio.gather(*(stack.enter_async_context(store) for store in stores))
        versions = await asyncio.gather(
            *(store.transact([Put(key=str(i), value=b"")]) for i, store in enumerate(stores))
        )
        assert sorted(v for (v,) in versions) == list(range(1, 9))
        assert _versions(postgres, name) == list(range(1, VERSION + 1))


async def test_an_unfinished_migration_is_finished(postgres: Postgres) -> None:
    """A process may be killed between any two statements of one."""
    async with schema(postgres.url()) as name:
        async with PostgresStore(postgres.url(name)) as store:
            await store.write("k", b"1")
        postgres.run(f"DELETE FROM {name}.micro_store_schema")
        postgres.run(f"DROP TABLE {name}.micro_store_leftovers, {name}.micro_store_blobs")
        async with PostgresStore(postgres.url(name)) as store:
            assert (await store.read("k")).value == b"1"
            assert await store.blobs() == []
        assert _versions(postgres, name) == list(range(1, VERSION + 1))


async def test_a_newer_schema_is_refused(postgres: Postgres) -> None:
    async with schema(postgres.url()) as name:
        async with PostgresStore(postgres.url(name)):
            pass
        postgres.run(f"INSERT INTO {name}.micro_store_schema VALUES ({VERSION + 1})")
        with pytest.raises(PreconditionFailed, match=f"version {VERSION + 1}.*update this one"):
            await PostgresStore(postgres.url(name)).__aenter__()


async def test_a_user_who_may_not_make_tables(postgres: Postgres) -> None:
    async with schema(postgres.url()) as name:
        postgres.run("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        try:
            postgres.run(f"GRANT USAGE ON SCHEMA {name} TO guest")
            url = f"postgres://guest:guest@127{postgres.url(name).partition('@127')[2]}"
            with pytest.raises(PreconditionFailed, match="GRANT CREATE"):
                await PostgresStore(url).__aenter__()
        finally:
            postgres.run(f"REVOKE ALL ON SCHEMA {name} FROM guest")
            postgres.run("DROP ROLE guest")


async def test_a_database_in_another_encoding(postgres: Postgres) -> None:
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        url = postgres.url().removesuffix("/postgres") + "/latin"
        with pytest.raises(PreconditionFailed, match="LATIN1"):
            await PostgresStore(url).__aenter__()
    finally:
        postgres.run("DROP DATABASE latin")


async def test_a_password_changed_meanwhile_is_named(postgres: Postgres) -> None:
    async with schema(postgres.url()) as name:
        postgres.run("CREATE ROLE other LOGIN PASSWORD 'one'")
        postgres.run(f"GRANT ALL ON SCHEMA {name} TO other")
        try:
            url = f"postgres://other:one@127{postgres.url(name).partition('@127')[2]}"
            async with PostgresStore(url, patience=1) as store:
                await store.write("k", b"1")
                postgres.run("ALTER ROLE other PASSWORD 'two'")
                postgres.cut_all()
                with pytest.raises(MicroError, match="correct user and password") as caught:
                    await store.read("k")
                assert caught.value.code == 503
        finally:
            postgres.run("DROP OWNED BY other")
            postgres.run("DROP ROLE other")


async def test_a_password_does_not_reach_the_log(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        schema(postgres.url()) as name,
        proxy(postgres.port) as between,
        PostgresStore(postgres.url(name, port=between.port), patience=0.5) as store,
    ):
        await store.write("k", b"1")
        between.refusing = True
        between.cut()
        with pytest.raises(MicroError) as caught:
            await store.read("k")
        assert caught.value.code == 503
        assert hides_the_password(f"{caught.value!r} {store!r}")
    assert hides_the_password(caplog.text)


def test_kerberos_only_where_the_url_asks_for_it() -> None:
    assert parse("postgres://u@h/d").options["gssencmode"] == "disable"
    assert parse("postgres://u@h/d?gssencmode=prefer").options["gssencmode"] == "prefer"
