"""The store in PostgreSQL or CockroachDB: any number of processes on any number of machines.

Writes are SERIALIZABLE and acknowledged when the server has said that they are committed, which is
on its disk as far as its own settings go (``fsync``; ``synchronous_commit`` is turned on where it
is off). A commit whose answer was lost is asked after; BadGateway says that its end could not be
found out, Unavailable that nothing was done. Time is the server's: processes whose clocks differ
agree on what has expired. All reads are one statement, which sees all that was acknowledged before.

A watch is told of changes of other processes within some 50 ms, and goes on by itself when the
server was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any

from micro_ray.errors import MicroError, NotFound, Unavailable
from micro_ray.finding import Finding
from micro_ray.store import (
    DEFAULT,
    MAX_KEYS,
    MAX_RECORDS,
    Blob,
    Change,
    Operation,
    Record,
    Store,
    Usage,
    checks,
)
from micro_ray.store.postgres_blobs import Blobs
from micro_ray.store.postgres_connection import Connection
from micro_ray.store.postgres_database import PATIENCE, Database
from micro_ray.store.postgres_health import examine
from micro_ray.store.postgres_isolation import EVERYTHING
from micro_ray.store.postgres_lists import Lists
from micro_ray.store.postgres_plan import Job, Place
from micro_ray.store.postgres_reads import Reads
from micro_ray.store.postgres_statement import Statement
from micro_ray.store.postgres_url import parse
from micro_ray.store.postgres_watch import Watches, newest_of
from micro_ray.store.postgres_writes import Writes

__all__ = ["PostgresStore"]

log = logging.getLogger(__name__)

#: Connections of one store at most.
CONNECTIONS = 8
#: Seconds between sweeps, and between those of blobs and of marks of commits.
SWEEP = 2.0
SWEEP_SLOWLY = 600.0
#: Expired records removed at a time; a history of commits in minutes.
_SWEPT = 1000
_COLUMNS = {
    "key": "text", "value": "bytea", "metadata": "text", "expires": "float8", "version": "int8",
}  # fmt: skip
_SERVER_TIME = "extract(epoch FROM statement_timestamp())::float8"
_GIVEN_TIME = "%(now)s::float8"


class PostgresStore(Store):
    """``url`` as :func:`~micro_ray.store.postgres_url.parse` takes it. ``clock`` is wall-clock
    seconds instead of the server's. ``patience`` is how many seconds a verb tries to reach the
    server before it raises Unavailable. ``isolation``: who keeps namespaces apart, the server where
    it can ("auto") or must ("server"), or our queries alone ("query")."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] | None = None,
        connections: int = CONNECTIONS,
        patience: float = PATIENCE,
        isolation: str = "auto",
    ) -> None:
        self._database = Database(
            parse(url), size=connections, patience=patience, isolation=isolation
        )
        self._now = _SERVER_TIME if clock is None else _GIVEN_TIME
        self._clock = clock or (lambda: 0.0)
        self._watches = Watches(self._database)
        self._writes = Writes(self._database, self._now, self._clock, self._watches.wake)
        self._lists = Lists(_COLUMNS, self._now)
        self._reads = Reads(self._rows, _COLUMNS, self._now)
        self._blobs = Blobs(self._database)
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> PostgresStore:
        """Waits for the server as long as it takes. Raises BadRequest when it refuses the user, the
        password, the database or TLS, PreconditionFailed when its schema is a newer one, or it
        shall keep namespaces apart and cannot."""
        await self._database.open(
            [*self._reads.statements, *self._lists.statements, *self._writes.statements]
        )
        self._sweeper = asyncio.create_task(self._sweep(), name="store-sweep")
        return self

    async def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._watches.close()
        await self._writes.close()
        await self._reads.close()
        await self._database.close()

    async def examine(self) -> list[Finding]:
        """Of the database: what it is, and whether it keeps what it confirms."""
        return await examine(self._database)

    def _check(self, namespace: str, database: str = DEFAULT, table: str = DEFAULT) -> None:
        checks.name("namespace", namespace)
        checks.name("database", database)
        checks.name("table", table)
        if self._closed:
            raise Unavailable("store", "the store is closed")

    # -- sweeping --------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        slowly = loop.time() + random.uniform(0, SWEEP_SLOWLY)
        while True:
            # Not in step with the other processes.
            await asyncio.sleep(SWEEP * random.uniform(0.5, 1))
            try:
                await self.sweep()
                if loop.time() > slowly:
                    slowly = loop.time() + SWEEP_SLOWLY
                    await self.sweep_leftovers()
            except MicroError as error:
                log.warning("the store is not swept: %s", error)

    async def sweep(self) -> None:
        """Remove records that have expired, and tell watchers; done every 2 s by itself. Several
        may sweep at once: each looks again under the namespace's lock."""
        while True:
            sql = (
                "SELECT namespace, db, tbl, key FROM micro_store_records"
                f" WHERE expires <= {self._now} ORDER BY expires LIMIT {_SWEPT}"
            )
            rows = await self._rows(EVERYTHING, sql, {})
            spaces: dict[str, list[Place]] = defaultdict(list)
            for namespace, db, tbl, key in rows:
                spaces[namespace].append((db, tbl, key))
            for namespace, places in spaces.items():
                await self._writes.submit(namespace, Job(expired=places))
            if len(rows) < _SWEPT:
                return

    async def sweep_leftovers(self) -> None:
        """Remove pieces of blobs that nobody reads any more, and marks of commits that nobody asks
        after; done every ten minutes by itself."""
        while await self._blobs.sweep():
            pass
        while await self._blobs.adopt():
            pass

        async def job(connection: Connection) -> None:
            await connection.execute(
                "DELETE FROM micro_store_commits WHERE at < now() - '10 minutes'::interval"
            )

        await self._database.ask(EVERYTHING, job)

    # -- records ---------------------------------------------------------------------------------

    async def read(
        self, key: str, *, database: str = DEFAULT, table: str = DEFAULT, namespace: str = DEFAULT
    ) -> Record:
        checks.key(key)
        self._check(namespace, database, table)
        row = await self._reads.read((namespace, database, table), key)
        if row is None:
            raise NotFound("store", f"no record {key!r} in {database}/{table}")
        return _record(row)

    async def query(
        self,
        *,
        prefix: str = "",
        suffix: str = "",
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[Record]:
        checks.page(prefix, suffix, limit, offset, order)
        self._check(namespace, database, table)
        if "\0" in prefix + suffix:  # no key has it, and the server cannot be asked
            return []
        most = min(limit or MAX_RECORDS + 1, MAX_RECORDS + 1)
        values = self._lists.values((namespace, database, table), prefix, suffix, most, offset)
        values["now"] = self._clock()
        statement = self._lists.records(order)

        async def job(connection: Connection) -> list[Record]:
            answer: checks.Answer[Record] = checks.Answer()
            async with contextlib.aclosing(connection.streamed(statement, values)) as rows:
                async for row in rows:
                    answer.add(_record(row))
            return answer.rows

        return await self._database.ask(namespace, job)

    async def keys(
        self,
        *,
        prefix: str = "",
        suffix: str = "",
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[str]:
        checks.page(prefix, suffix, limit, offset, order)
        self._check(namespace, database, table)
        if "\0" in prefix + suffix:
            return []
        most = min(limit or MAX_KEYS + 1, MAX_KEYS + 1)
        values = self._lists.values((namespace, database, table), prefix, suffix, most, offset)
        rows = await self._rows(namespace, self._lists.keys(order), values)
        return checks.answer_keys(row[0] for row in rows)

    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        checks.operations(operations)
        self._check(namespace, database)
        job = Job(database=database, operations=tuple(operations))
        return await self._writes.submit(namespace, job)

    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        self._check(namespace)
        sql = "SELECT DISTINCT db FROM micro_store_tables WHERE namespace = %(ns)s"
        return sorted(row[0] for row in await self._rows(namespace, sql, {"ns": namespace}))

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        self._check(namespace, database)
        sql = "SELECT tbl FROM micro_store_tables WHERE namespace = %(ns)s AND db = %(db)s"
        given = {"ns": namespace, "db": database}
        return sorted(row[0] for row in await self._rows(namespace, sql, given))

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        self._check(namespace)
        given = {"ns": namespace}
        records = await self._rows(
            namespace,
            "SELECT count(*), coalesce(sum(octet_length(key) + octet_length(value)), 0)"
            " FROM micro_store_records WHERE namespace = %(ns)s",
            given,
        )
        blobs = await self._rows(
            namespace,
            "SELECT count(*), coalesce(sum(size), 0) FROM micro_store_blobs"
            " WHERE namespace = %(ns)s",
            given,
        )
        return Usage(
            records=int(records[0][0]),
            bytes=int(records[0][1]),
            blobs=int(blobs[0][0]),
            blob_bytes=int(blobs[0][1]),
        )

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        self._check(namespace)
        return await newest_of(self._database, namespace)

    async def watch(
        self,
        *,
        revision: int,
        prefix: str = "",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Change]:
        checks.part("prefix", prefix)
        self._check(namespace, database, table)
        async with contextlib.aclosing(self._watches.follow(namespace, revision)) as changes:
            async for change in changes:
                here = (change.database, change.table) == (database, table)
                if here and change.key.startswith(prefix):
                    yield change

    async def _rows(
        self, namespace: str, sql: Any, values: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        values["now"] = self._clock()

        async def job(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = connection.cursor(binary=True)
            if isinstance(sql, Statement):
                await connection.run(sql, values, cursor)
            else:
                await cursor.execute(sql, values)
            return await cursor.fetchall()

        return await self._database.ask(namespace, job)

    # -- blobs -----------------------------------------------------------------------------------

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        checks.key(key)
        self._check(namespace)
        return await self._blobs.write(namespace, key, chunks)

    async def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        checks.key(key)
        self._check(namespace)
        async with contextlib.aclosing(self._blobs.read(namespace, key)) as pieces:
            async for piece in pieces:
                yield piece

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        checks.key(key)
        self._check(namespace)
        return await self._blobs.delete(namespace, key)

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        checks.part("prefix", prefix)
        self._check(namespace)
        if "\0" in prefix:
            return []
        return checks.answer_blobs(await self._blobs.list(namespace, prefix))


def _record(row: Sequence[Any]) -> Record:
    key, value, metadata, expires, version, now = row
    return Record(
        key=key,
        value=bytes(value),
        metadata=json.loads(metadata),
        expiry=None if expires is None else max(0.0, expires - now),
        version=version,
    )
