"""Puts that depend on nothing that is there, as one statement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg

from micro_ray.store import Put
from micro_ray.store.postgres_plan import Job
from micro_ray.store.postgres_pool import Connection

__all__ = ["Puts"]

#: A put that a later one of the same key replaces is a change, but no record.
_SQL = """
WITH counter AS (
    UPDATE micro_store_counters SET revision = revision + %(count)s::int8
    WHERE namespace = %(ns)s
    RETURNING revision - %(count)s::int8 AS before, {now} AS now
), record AS (
    INSERT INTO micro_store_records
        (namespace, db, tbl, key, value, metadata, expires, version)
    SELECT %(ns)s, d, t, k, v, m, now + e, before + n
    FROM counter, unnest(%(dbs)s::text[], %(tbls)s::text[], %(keys)s::text[], %(values)b::bytea[],
        %(metadata)s::text[], %(expiries)s::float8[], %(numbers)s::int8[])
        AS new (d, t, k, v, m, e, n)
    ON CONFLICT (namespace, db, tbl, key) DO UPDATE SET value = excluded.value,
        metadata = excluded.metadata, expires = excluded.expires, version = excluded.version
), change AS (
    INSERT INTO micro_store_changes (namespace, revision, action, db, tbl, key)
    SELECT %(ns)s, before + n, 'put', d, t, k
    FROM counter, unnest(%(all_dbs)s::text[], %(all_tbls)s::text[], %(all_keys)s::text[],
        %(all_numbers)s::int8[]) AS new (d, t, k, n)
), mark AS (
    INSERT INTO micro_store_commits (id, done) SELECT %(mark)s, true FROM counter
)
SELECT before FROM counter
"""


class Puts:
    """The puts of some jobs, numbered from 1 in their order. ``now`` is the SQL of the present
    time, ``at`` its parameter."""

    def __init__(self, namespace: str, jobs: Sequence[Job], now: str, at: float) -> None:
        rows = [(job.database, row) for job in jobs for row in job.operations]
        self.count = len(rows)
        self._jobs = jobs
        self._sql: Any = _SQL.replace("{now}", now)
        last = {(db, row.table, row.key): number for number, (db, row) in enumerate(rows, 1)}
        kept = [(number, *rows[number - 1]) for number in last.values()]
        puts = [row for _, _, row in kept if isinstance(row, Put)]
        self._values: dict[str, Any] = {
            "ns": namespace,
            "now": at,
            "count": self.count,
            "dbs": [db for _, db, _ in kept],
            "tbls": [row.table for row in puts],
            "keys": [row.key for row in puts],
            "values": [row.value for row in puts],
            "metadata": [json.dumps(dict(row.metadata)) for row in puts],
            "expiries": [row.expiry for row in puts],
            "numbers": [number for number, _, _ in kept],
            "all_dbs": [db for db, _ in rows],
            "all_tbls": [row.table for _, row in rows],
            "all_keys": [row.key for _, row in rows],
            "all_numbers": list(range(1, self.count + 1)),
        }

    async def run(self, connection: Connection, mark: str) -> tuple[psycopg.AsyncCursor[Any], bool]:
        """The newest version before these, to be fetched after the commit; none for a namespace
        without a counter, where nothing is written."""
        return await connection.execute(self._sql, {**self._values, "mark": mark}), True

    def answers(self, before: int) -> list[list[int]]:
        """The versions of each job."""
        found, number = [], before
        for job in self._jobs:
            count = len(job.operations)
            found.append([number + i for i in range(1, count + 1)])
            number += count
        return found
