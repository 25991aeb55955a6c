"""One SQLite file: a thread that writes, with commits shared by those who wait, and threads that
read."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from micro_ray.errors import Conflict, InternalError, MicroError, Unavailable
from micro_ray.store import Blob, Operation, Put, checks
from micro_ray.store.prefix import after
from micro_ray.store.sqlite_rows import COLUMNS, SCHEMA, Row, apply, delete, row_of

__all__ = ["File", "failure"]

T = TypeVar("T")

#: Writes that may share one commit.
GROUP = 256
#: Writes that may wait, and their bytes; more are refused.
WAITING = 10_000
WAITING_BYTES = 128 * 2**20
READERS = 2
#: Seconds to wait for another process that writes.
BUSY = 5.0
#: Seconds between looks for changes of other processes, while somebody watches.
POLL = 0.02


@contextlib.contextmanager
def failure(path: Path) -> Iterator[None]:
    """What goes wrong below, as an error that names the file and what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        advice = {
            "full": "free some space",
            "locked": "try again",
            "readonly": "make it writable",
            "unable to open": "check that the folder exists and can be written",
            "disk I/O": "check the disk",
        }
        hint = next((do for word, do in advice.items() if word in text), "see the server's log")
        raise Unavailable("store", f"{path}: {text}; {hint}", 1.0) from error
    except sqlite3.DatabaseError as error:
        raise InternalError(
            "store", f"{path}: {error}; restore it from a backup, or move it away to start empty"
        ) from error
    except OSError as error:
        raise Unavailable("store", f"{path}: {error.strerror or error}", 1.0) from error


class File:
    """Opened by :meth:`open`; all other verbs are safe from many tasks."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._changed = asyncio.Event()
        self._watchers = 0
        self._poller: asyncio.Task[None] | None = None
        self._closed = False
        self._path = path
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[Callable[..., Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting = 0
        self._waiting_bytes = 0
        self._writer: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def open(self) -> None:
        try:
            with failure(self._path):
                connection = await asyncio.to_thread(self._connect, True)
        except BaseException:
            await self.close()
            raise
        self._writer = threading.Thread(
            target=self._write_all, args=(connection,), name="store-write", daemon=True
        )
        self._writer.start()

    async def close(self) -> None:
        """Writes that were accepted are done first; watchers end with Unavailable."""
        self._closed = True
        self._wake()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        if self._writer is not None:
            self._work.put(None)
            await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("store", f"{self._path} is closed")

    def _connect(self, create: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        self._connections.append(connection)
        if create:
            _to_wal(connection)
            connection.executescript(SCHEMA)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=1000")
        return connection

    # -- writing ---------------------------------------------------------------------------------

    async def _write(self, job: Callable[[sqlite3.Connection], T], size: int = 0) -> T:
        """Run ``job`` in a transaction; when this returns it is committed. A write cannot be taken
        back: when the caller is cancelled it is done all the same."""
        self._check_open()
        if self._waiting >= WAITING or self._waiting_bytes + size > WAITING_BYTES:
            raise Unavailable(
                "store", f"{self._waiting} writes of {self._waiting_bytes} bytes are waiting", 0.5
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        self._waiting_bytes += size
        future.add_done_callback(lambda _: self._settled(size))
        self._work.put((job, future))
        return await asyncio.shield(future)

    def _settled(self, size: int) -> None:
        self._waiting -= 1
        self._waiting_bytes -= size

    def _write_all(self, connection: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            group = []
            item = self._work.get()
            while item is not None:
                group.append(item)
                if len(group) >= GROUP or self._work.empty():
                    break
                item = self._work.get()
            ended = item is None
            if group:
                outcomes = self._commit(connection, [job for job, _ in group])
                with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                    self._loop.call_soon_threadsafe(
                        self._tell, [future for _, future in group], outcomes
                    )

    def _commit(
        self, connection: sqlite3.Connection, jobs: Sequence[Callable[..., Any]]
    ) -> list[tuple[Any, BaseException | None]]:
        """All jobs in one transaction, each in a savepoint of its own."""
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with failure(self._path):
                connection.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    outcomes.append(self._one(connection, job))
                connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            # Nothing of the group is on disk: nobody is told that it is.
            return [(None, error) for _ in jobs]
        return outcomes

    def _one(
        self, connection: sqlite3.Connection, job: Callable[..., Any]
    ) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT one")
        try:
            answer = job(connection)
        except MicroError as error:
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return None, error
        connection.execute("RELEASE one")
        return answer, None

    def _tell(
        self,
        futures: Sequence[asyncio.Future[Any]],
        outcomes: Sequence[tuple[Any, BaseException | None]],
    ) -> None:
        for future, (answer, error) in zip(futures, outcomes, strict=True):
            if future.done():
                continue
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)
                future.exception()  # the caller may have gone
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def transact(self, database: str, operations: Sequence[Operation]) -> list[int]:
        now = self._clock()

        def job(connection: sqlite3.Connection) -> list[int]:
            return [apply(connection, database, row, now) for row in operations]

        size = sum(len(row.value) for row in operations if isinstance(row, Put))
        return await self._write(job, size)

    async def expire(self, most: int = 1000) -> bool:
        """Remove what has expired, as deletes; whether there may be more of it."""
        now = self._clock()
        if not await self._read(
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

        return await self._write(job)

    async def enter_blob(self, key: str, file: str, size: int) -> str | None:
        def job(connection: sqlite3.Connection) -> str | None:
            old = connection.execute("SELECT file FROM blobs WHERE key = ?", (key,)).fetchone()
            connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (key, file, size))
            return None if old is None else str(old[0])

        return await self._write(job)

    async def drop_blob(self, key: str) -> str | None:
        def job(connection: sqlite3.Connection) -> str | None:
            old = connection.execute("SELECT file FROM blobs WHERE key = ?", (key,)).fetchone()
            connection.execute("DELETE FROM blobs WHERE key = ?", (key,))
            return None if old is None else str(old[0])

        return await self._write(job)

    # -- reading ---------------------------------------------------------------------------------

    async def _read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()

        def run() -> T:
            with failure(self._path):
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect()
                return job(connection)

        return await self._loop.run_in_executor(self._readers, run)

    async def read(self, database: str, table: str, key: str) -> Row | None:
        found = await self._read(
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

        return await self._read(job)

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

        return await self._read(job)

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
        rows = await self._read(lambda c: c.execute(sql, values).fetchall())
        return [row[0] for row in rows]

    async def revision(self) -> int:
        row = await self._read(lambda c: c.execute("SELECT revision FROM counter").fetchone())
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
                oldest, rows = await self._changes(revision)
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

    async def _changes(self, after: int) -> tuple[int, list[tuple[int, str, str, str, str]]]:
        """The oldest revision kept (one past the newest when none is), and changes after one."""

        def job(connection: sqlite3.Connection) -> tuple[int, list[Any]]:
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
            return (newest + 1 if oldest is None else oldest), rows

        return await self._read(job)

    async def blob(self, key: str) -> str | None:
        rows = await self.names("SELECT file FROM blobs WHERE key = ?", key)
        return rows[0] if rows else None

    async def blobs(self, prefix: str, most: int) -> list[Blob]:
        rows = await self._read(
            lambda c: c.execute(
                "SELECT key, size FROM blobs WHERE substr(key, 1, ?) = ? ORDER BY key LIMIT ?",
                (len(prefix), prefix, most),
            ).fetchall()
        )
        return [Blob(key=key, size=size) for key, size in rows]


def _to_wal(connection: sqlite3.Connection) -> None:
    """The switch of a new file fails at once, without waiting, while another process does it."""
    end = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return
