"""The tables of a store in PostgreSQL or CockroachDB, and how they come to be.

A migration is a list of statements that may each run again, and run while another replica runs
them: CockroachDB has no transactions over several schema changes, so none is relied upon.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from micro_ray.errors import PreconditionFailed, Unavailable

__all__ = ["VERSION", "migrate", "settle"]

Connection = psycopg.AsyncConnection[Any]

#: Names and keys are ordered by their bytes. In PostgreSQL that needs saying; it is the only order
#: of CockroachDB, which is not asked for it.
_NAMESPACE: LiteralString = "namespace TEXT {order} NOT NULL"
_PLACE: LiteralString = _NAMESPACE + ", db TEXT {order} NOT NULL, tbl TEXT {order} NOT NULL"
_KEY: LiteralString = "key TEXT {order} NOT NULL"

_FIRST: Sequence[LiteralString] = (
    "CREATE TABLE IF NOT EXISTS micro_store_records (" + _PLACE + ", " + _KEY + ","
    " value BYTEA NOT NULL, metadata TEXT NOT NULL, expires FLOAT8, version INT8 NOT NULL,"
    " PRIMARY KEY (namespace, db, tbl, key))",
    "CREATE INDEX IF NOT EXISTS micro_store_records_expires ON micro_store_records (expires)"
    " WHERE expires IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS micro_store_tables (" + _PLACE + ","
    " PRIMARY KEY (namespace, db, tbl))",
    "CREATE TABLE IF NOT EXISTS micro_store_counters (" + _NAMESPACE + " PRIMARY KEY,"
    " revision INT8 NOT NULL)",
    "CREATE TABLE IF NOT EXISTS micro_store_changes (" + _PLACE + ", " + _KEY + ","
    " revision INT8 NOT NULL, action TEXT NOT NULL, PRIMARY KEY (namespace, revision))",
    "CREATE TABLE IF NOT EXISTS micro_store_commits (id TEXT {order} PRIMARY KEY,"
    " done BOOL NOT NULL, at TIMESTAMPTZ NOT NULL DEFAULT now())",
    "CREATE INDEX IF NOT EXISTS micro_store_commits_at ON micro_store_commits (at)",
    "CREATE TABLE IF NOT EXISTS micro_store_blobs (" + _NAMESPACE + ", " + _KEY + ","
    " id TEXT {order} NOT NULL, size INT8 NOT NULL, PRIMARY KEY (namespace, key))",
    "CREATE TABLE IF NOT EXISTS micro_store_pieces (id TEXT {order} NOT NULL, at INT8 NOT NULL,"
    " data BYTEA NOT NULL, PRIMARY KEY (id, at))",
    "CREATE TABLE IF NOT EXISTS micro_store_leftovers (id TEXT {order} PRIMARY KEY,"
    " due TIMESTAMPTZ NOT NULL)",
)
#: What a write that is one statement answers with, for who has lost the answer.
_SECOND: Sequence[LiteralString] = (
    "ALTER TABLE micro_store_commits ADD COLUMN IF NOT EXISTS number INT8",
)
#: Whose each row is, in the tables that did not say. Blank in what was there before.
_THIRD: Sequence[LiteralString] = (
    "ALTER TABLE micro_store_commits ADD COLUMN IF NOT EXISTS namespace TEXT {order}",
    "ALTER TABLE micro_store_pieces ADD COLUMN IF NOT EXISTS namespace TEXT {order}",
    "ALTER TABLE micro_store_leftovers ADD COLUMN IF NOT EXISTS namespace TEXT {order}",
    "CREATE INDEX IF NOT EXISTS micro_store_pieces_late ON micro_store_pieces (id)"
    " WHERE namespace IS NULL",
)
_MIGRATIONS: Sequence[Sequence[LiteralString]] = (_FIRST, _SECOND, _THIRD)
VERSION = len(_MIGRATIONS)

_VERSIONS: LiteralString = (
    "CREATE TABLE IF NOT EXISTS micro_store_schema (version INT8 PRIMARY KEY,"
    " at TIMESTAMPTZ NOT NULL DEFAULT now())"
)
#: What a statement of a schema fails with when another replica does the same at the same time:
#: IF NOT EXISTS looks before it makes. The last is a lock that was not to be had.
_CROWDED = ("23505", "40001", "40P01", "42710", "42P06", "42P07", "XX000", "55P03")
#: Milliseconds that such a statement waits for a table that somebody reads at length (a dump):
#: everybody else who wants the table waits behind it.
_LOCK = 1000
_ATTEMPTS = 50


async def migrate(connection: Connection, *, cockroach: bool) -> None:
    """Bring the schema to :data:`VERSION`, from none or an older one; any number may do so at once.
    The connection waits for no lock for long from then on. Raises PreconditionFailed when it is
    newer, or the user may not make tables."""
    if not cockroach:
        await connection.execute(f"SET lock_timeout = {_LOCK}")
    try:
        await _migrate(connection, "" if cockroach else 'COLLATE "C"')
    except psycopg.errors.InsufficientPrivilege as error:
        raise PreconditionFailed(
            "store",
            f"the database's user may not make tables ({error.diag.message_primary}): "
            "GRANT CREATE ON SCHEMA ... to it, or name its own schema by search_path",
        ) from None


async def _migrate(connection: Connection, order: LiteralString) -> None:
    found = await _version(connection)
    if found > VERSION:
        raise PreconditionFailed(
            "store",
            f"the database's schema has version {found}, this program knows {VERSION}: a newer "
            "micro-ray has been here; update this one",
        )
    for number in range(found + 1, VERSION + 1):
        for statement in _MIGRATIONS[number - 1]:
            await settle(connection, statement.replace("{order}", order))
        await connection.execute(
            "INSERT INTO micro_store_schema (version) VALUES (%s) ON CONFLICT DO NOTHING", (number,)
        )


async def _version(connection: Connection) -> int:
    try:
        cursor = await connection.execute("SELECT max(version) FROM micro_store_schema")
    except psycopg.errors.UndefinedTable:
        await settle(connection, _VERSIONS)
        return 0
    row = await cursor.fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


async def settle(connection: Connection, statement: LiteralString) -> None:
    """Run a statement that others may run at the same time, until it is done. Raises what psycopg
    raises for anything else."""
    for attempt in range(_ATTEMPTS):
        try:
            await connection.execute(statement)
        except psycopg.Error as error:
            if error.sqlstate not in _CROWDED:
                raise
            await asyncio.sleep(random.random() * min(0.5, 0.01 * 2**attempt))
        else:
            return
    raise Unavailable("store", "others change the database's schema all the time", 1.0)
