"""One SQLite file of the store: what it holds, who watches it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from micro_ray.errors import Conflict, MicroError
from micro_ray.sqlite import Database
from micro_ray.store import Blob, Operation, Put, Usage, checks
from micro_ray.store.prefix import after
from micro_ray.store.sqlite_rows import COLUMNS, SCHEMA, Row, apply, delete, row_of

__all__ = ["File"]

#: Seconds between looks for changes of other processes, while somebody watches.
POLL = 0.02


class File(Database):
    """Opened by :meth:`open`; all other verbs are safe from many tasks."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        super().__init__(path, name="store", schema=SCHEMA)
        self._changed = asyncio.Event()
        self._watchers = 0
        self._poller: asyncio.Task[None] | None = None
        self._clock = clock

    async def close(self) -> None:
        """Writes that were accepted are done first; watchers end with Unavailable."""
        self.closed = True
        self._wake()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await super().close()

    def committed(self, tags: Sequence[str]) -> None:
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- writing ---------------------------------------------------------------------------------

    async def transact(self, database: str, operations: Sequence[Operation]) -> list[int]:
        now = self._clock()

        def job(connection: sqlite3.Connection) -> list[int]:
            return [apply(connection, database, row, now) for row in operations]

        size = sum(len(row.value) for row in operations if isinstance(row, Put))
        return await self.write(job, size)

    async def expire(self, most: int = 1000) -> bool:
        """Remove what has expired, as deletes; whether there may be more of it."""
        now = self._clock()
        if not await self.read_with(
            lambda c: c.execute("SELECT 1 FROM records WHERE expires <= ?", (now,)).fetchone()
        ):
            return False

        def job(connection: sqlite3.Connection) -> bool:
            rows = connection.execute(
                "SELECT db, tbl, key FROM records WHERE expires <= ? LIMIT ?", (now, most)
            ).fetchall()
            for db, tbl, key in rows:
                delete(connection, db, tbl, key)
            return len(rows) == most

        return await self.write(job)

    async def enter_blob(self, key: str, file: str, size: int) -> str | None:
        def job(connection: sqlite3.Connection) -> str | None:
            old = connection.execute("SELECT file FROM blobs WHERE key = ?", (key,)).fetchone()
            connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (key, file, size))
            return None if old is None else str(old[0])

        return await self.write(job)

    async def drop_blob(self, key: str) -> str | None:
        def job(connection: sqlite3.Connection) -> str | None:
            old = connection.execute("SELECT file FROM blobs WHERE key = ?", (key,)).fetchone()
            connection.execute("DELETE FROM blobs WHERE key = ?", (key,))
            return None if old is None else str(old[0])

        return await self.write(job)

    # -- reading ---------------------------------------------------------------------------------

    async def read(self, database: str, table: str, key: str) -> Row | None:
        found = await self.glance(
            lambda c: c.execute(
                f"SELECT {COLUMNS} FROM records WHERE db = ? AND tbl = ? AND key = ?"
                " AND (expires IS NULL OR expires > ?)",
                (database, table, key, self._clock()),
            ).fetchone()
        )
        return None if found is None else row_of(found)

    async def query(
        self,
        database: str,
        table: str,
        prefix: str,
        suffix: str,
        limit: int,
        offset: int,
        order: str,
    ) -> list[Row]:
        where, values = self._where(database, table, prefix, suffix)
        sql = f"SELECT {COLUMNS} FROM records {where} ORDER BY key {order} LIMIT ? OFFSET ?"

        def job(connection: sqlite3.Connection) -> list[Row]:
            with contextlib.closing(connection.execute(sql, (*values, limit, offset))) as cursor:
                return checks.answer(row_of(found) for found in cursor)

        return await self.read_with(job)

    async def keys(
        self,
        database: str,
        table: str,
        prefix: str,
        suffix: str,
        limit: int,
        offset: int,
        order: str,
    ) -> list[str]:
        where, values = self._where(database, table, prefix, suffix)
        sql = f"SELECT key FROM records {where} ORDER BY key {order} LIMIT ? OFFSET ?"

        def job(connection: sqlite3.Connection) -> list[str]:
            with contextlib.closing(connection.execute(sql, (*values, limit, offset))) as cursor:
                return checks.answer_keys(found[0] for found in cursor)

        return await self.read_with(job)

    def _where(
        self, database: str, table: str, prefix: str, suffix: str
    ) -> tuple[str, tuple[Any, ...]]:
        """A range over the primary key for the prefix; never LIKE, whose wildcards are data."""
        where = "WHERE db = ? AND tbl = ? AND (expires IS NULL OR expires > ?)"
        values: list[Any] = [database, table, self._clock()]
        if prefix:
            where += " AND key >= ? AND substr(key, 1, ?) = ?"
            values += [prefix, len(prefix), prefix]
            end = after(prefix)
            if end:
                where += " AND key < ?"
                values.append(end)
        if suffix:
            where += " AND length(key) >= ? AND substr(key, -?) = ?"
            values += [len(suffix), len(suffix), suffix]
        return where, tuple(values)

    async def names(self, sql: str, *values: str) -> list[str]:
        rows = await self.read_with(lambda c: c.execute(sql, values).fetchall())
        return [row[0] for row in rows]

    async def usage(self) -> Usage:
        def job(connection: sqlite3.Connection) -> Usage:
            records = connection.execute(
                "SELECT count(*), coalesce(sum(length(CAST(key AS BLOB)) + length(value)), 0)"
                " FROM records"
            ).fetchone()
            blobs = connection.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM blobs"
            ).fetchone()
            return Usage(records=records[0], bytes=records[1], blobs=blobs[0], blob_bytes=blobs[1])

        return await self.read_with(job)

    async def revision(self) -> int:
        row = await self.glance(lambda c: c.execute("SELECT revision FROM counter").fetchone())
        return int(row[0])

    async def watch(self, revision: int) -> AsyncGenerator[tuple[int, str, str, str, str], None]:
        """Changes after a revision: revision, action, database, table, key. However many watch,
        one task looks for what other processes wrote."""
        self._watchers += 1
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            while True:
                changed = self._changed
                oldest, newest, rows = await self._changes(revision)
                if revision > newest:
                    raise checks.beyond(revision, newest)
                if oldest > revision + 1:
                    raise Conflict("store", f"changes after {revision} are no longer kept")
                for row in rows:
                    revision = row[0]
                    yield row
                if not rows:
                    await changed.wait()
        finally:
            self._watchers -= 1
            if not self._watchers and self._poller is not None:
                self._poller.cancel()
                self._poller = None

    async def _poll(self) -> None:
        """Wake the watchers when the newest revision is another; it is asked for rather than
        ``PRAGMA data_version``, which each reader's connection counts for itself."""
        seen = -1
        while True:
            try:
                newest = await self.revision()
            except MicroError:
                newest = -1  # the watchers look themselves, and tell their callers
            if newest != seen or newest < 0:
                seen = newest
                self._wake()
            await asyncio.sleep(POLL)

    async def _changes(self, after: int) -> tuple[int, int, list[tuple[int, str, str, str, str]]]:
        """The oldest revision kept (one past the newest when none is), the newest given by any
        process, and changes after one; all of one moment."""

        def job(connection: sqlite3.Connection) -> tuple[int, int, list[Any]]:
            connection.execute("BEGIN")
            try:
                oldest = connection.execute("SELECT min(revision) FROM changes").fetchone()[0]
                newest = connection.execute("SELECT revision FROM counter").fetchone()[0]
                rows = connection.execute(
                    "SELECT revision, action, db, tbl, key FROM changes WHERE revision > ?"
                    " ORDER BY revision LIMIT 1000",
                    (after,),
                ).fetchall()
            finally:
                connection.execute("COMMIT")
            return (newest + 1 if oldest is None else oldest), newest, rows

        return await self.read_with(job)

    async def blob(self, key: str) -> str | None:
        rows = await self.names("SELECT file FROM blobs WHERE key = ?", key)
        return rows[0] if rows else None

    async def blobs(self, prefix: str, most: int) -> list[Blob]:
        rows = await self.read_with(
            lambda c: c.execute(
                "SELECT key, size FROM blobs WHERE substr(key, 1, ?) = ? ORDER BY key LIMIT ?",
                (len(prefix), prefix, most),
            ).fetchall()
        )
        return [Blob(key=key, size=size) for key, size in rows]
