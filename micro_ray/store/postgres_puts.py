"""Puts that depend on nothing that is there, as one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from micro_ray.store import Put
from micro_ray.store.postgres_connection import Connection
from micro_ray.store.postgres_plan import Job
from micro_ray.store.postgres_statement import Statement

__all__ = ["Puts", "Statements"]

#: A put that a later one of the same key replaces is a change, but no record. ``kept`` are the
#: puts that are records, ``every`` all of them.
_SQL = """
WITH counter AS (
    UPDATE micro_store_counters SET revision = revision + %(count)s::int8
    WHERE namespace = %(ns)s::text
    RETURNING revision - %(count)s::int8 AS before, {now} AS now
), record AS (
    INSERT INTO micro_store_records
        (namespace, db, tbl, key, value, metadata, expires, version)
    SELECT %(ns)s::text, d, t, k, v, m, now + e, before + n
    FROM counter, {kept} AS kept (d, t, k, v, m, e, n)
    ON CONFLICT (namespace, db, tbl, key) DO UPDATE SET value = excluded.value,
        metadata = excluded.metadata, expires = excluded.expires, version = excluded.version
), change AS (
    INSERT INTO micro_store_changes (namespace, revision, action, db, tbl, key)
    SELECT %(ns)s::text, before + n, 'put', d, t, k
    FROM counter, {every} AS every (d, t, k, n)
), mark AS (
    INSERT INTO micro_store_commits (id, done, number, namespace)
    SELECT %(mark)s::text, true, before, %(ns)s::text FROM counter
)
SELECT before FROM counter
"""
_KEPT = (
    "unnest(%(dbs)s::text[], %(tbls)s::text[], %(keys)s::text[], %(values)b::bytea[],"
    " %(metadata)s::text[], %(expiries)s::float8[], %(numbers)s::int8[])"
)
_EVERY = (
    "unnest(%(all_dbs)s::text[], %(all_tbls)s::text[], %(all_keys)s::text[],"
    " %(all_numbers)s::int8[])"
)
#: The same for a put that is alone: arrays of one would cost the server half as much again.
_KEPT_ONE = (
    "(SELECT %(db)s::text, %(tbl)s::text, %(key)s::text, %(value)b::bytea, %(metadata)s::text,"
    " %(expiry)s::float8, 1::int8)"
)
_EVERY_ONE = "(SELECT %(db)s::text, %(tbl)s::text, %(key)s::text, 1::int8)"

#: Bytes of a value that a connection may hold on to until its next.
_SMALL = 64 * 1024

_encode = msgspec.json.encode


class Statements:
    """The statement for one put and that for many. ``now`` is the SQL of the present time."""

    def __init__(self, now: str) -> None:
        self.one = Statement(_SQL.format(now=now, kept=_KEPT_ONE, every=_EVERY_ONE), ["int8"])
        self.many = Statement(_SQL.format(now=now, kept=_KEPT, every=_EVERY), ["int8"])


class Puts:
    """The puts of some jobs, numbered from 1 in their order. ``at`` is the parameter of the present
    time."""

    def __init__(
        self, namespace: str, jobs: Sequence[Job], statements: Statements, at: float
    ) -> None:
        rows = [
            (job.database, row) for job in jobs for row in job.operations if isinstance(row, Put)
        ]
        self.count = len(rows)
        self._jobs = jobs
        alone = len(rows) == 1
        self._small = alone and len(rows[0][1].value) <= _SMALL
        self._sql = statements.one if alone else statements.many
        self._values: dict[str, Any] = {"ns": namespace, "now": at, "count": self.count}
        self._values |= _one(*rows[0]) if alone else _many(rows)

    async def run(self, connection: Connection, mark: str) -> int | None:
        """The newest version before these, committed; None for a namespace without a counter,
        where nothing is written."""
        self._values["mark"] = mark
        cursor = connection.kept if self._small else connection.cursor()
        await connection.run(self._sql, self._values, cursor)
        row = await cursor.fetchone()
        return None if row is None else int(row[0])

    def answers(self, before: int) -> list[list[int]]:
        """The versions of each job."""
        found, number = [], before
        for job in self._jobs:
            count = len(job.operations)
            found.append([number + i for i in range(1, count + 1)])
            number += count
        return found


def _one(database: str, put: Put) -> dict[str, Any]:
    return {
        "db": database,
        "tbl": put.table,
        "key": put.key,
        "value": put.value,
        "metadata": _encode(dict(put.metadata)).decode(),
        "expiry": put.expiry,
    }


def _many(rows: Sequence[tuple[str, Put]]) -> dict[str, Any]:
    last = {(db, row.table, row.key): number for number, (db, row) in enumerate(rows, 1)}
    kept = [(number, *rows[number - 1]) for number in last.values()]
    return {
        "dbs": [db for _, db, _ in kept],
        "tbls": [row.table for _, _, row in kept],
        "keys": [row.key for _, _, row in kept],
        "values": [row.value for _, _, row in kept],
        "metadata": [_encode(dict(row.metadata)).decode() for _, _, row in kept],
        "expiries": [row.expiry for _, _, row in kept],
        "numbers": [number for number, _, _ in kept],
        "all_dbs": [db for db, _ in rows],
        "all_tbls": [row.table for _, row in rows],
        "all_keys": [row.key for _, row in rows],
        "all_numbers": list(range(1, len(rows) + 1)),
    }
