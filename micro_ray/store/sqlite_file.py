"""One SQLite file: a thread that writes, with commits shared by those who wait, and threads that
read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from micro_ray.errors import InternalError, MicroError, Unavailable
from micro_ray.store import HISTORY, Action, Check, Operation, Put, checks

__all__ = ["File", "Row", "failure"]

T = TypeVar("T")

#: Writes that may share one commit.
GROUP = 256
#: Writes that may wait; more are refused.
WAITING = 10_000
READERS = 2
BUSY = 5.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    db TEXT NOT NULL, tbl TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL, metadata TEXT NOT NULL, expires REAL, version INTEGER NOT NULL,
    PRIMARY KEY (db, tbl, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_expires ON records (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS tables (
    db TEXT NOT NULL, tbl TEXT NOT NULL, PRIMARY KEY (db, tbl)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    revision INTEGER PRIMARY KEY, action TEXT NOT NULL,
    db TEXT NOT NULL, tbl TEXT NOT NULL, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
    key TEXT PRIMARY KEY, file TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER);
INSERT OR IGNORE INTO counter VALUES (1, 0);
"""

_COLUMNS = "key, value, metadata, expires, version"


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    value: bytes
    metadata: Mapping[str, str]
    expires: float | None
    version: int


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
    """Opened by :meth:`open`; all other verbs are safe from many tasks. ``changed`` is set for a
    moment when this process has written."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self.changed = asyncio.Event()
        self._path = path
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[Callable[..., Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting = 0
        self._writer: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def open(self) -> None:
        with failure(self._path):
            connection = await asyncio.to_thread(self._connect, True)
        self._writer = threading.Thread(
            target=self._write_all, args=(connection,), name="store-write", daemon=True
        )
        self._writer.start()

    async def close(self) -> None:
        if self._writer is not None:
            self._work.put(None)
            await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()

    def _connect(self, create: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        self._connections.append(connection)
        if create:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(SCHEMA)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=1000")
        return connection

    # -- writing ---------------------------------------------------------------------------------

    async def _write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``job`` in a transaction; when this returns it is committed."""
        if self._waiting >= WAITING:
            raise Unavailable("store", f"{WAITING} writes are waiting", 0.5)
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        try:
            self._work.put((job, future))
            # A write that is under way cannot be taken back: its outcome is awaited.
            return await asyncio.shield(future)
        finally:
            self._waiting -= 1

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
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def transact(self, database: str, operations: Sequence[Operation]) -> list[int]:
        now = self._clock()

        def job(connection: sqlite3.Connection) -> list[int]:
            return [_apply(connection, database, row, now) for row in operations]

        return await self._write(job)

    async def expire(self, most: int = 1000) -> None:
        now = self._clock()
        if not await self._read(
            lambda c: c.execute("SELECT 1 FROM records WHERE expires <= ?", (now,)).fetchone()
        ):
            return

        def job(connection: sqlite3.Connection) -> None:
            rows = connection.execute(
                "SELECT db, tbl, key FROM records WHERE expires <= ? LIMIT ?", (now, most)
            ).fetchall()
            for db, tbl, key in rows:
                _delete(connection, db, tbl, key)

        await self._write(job)

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
                f"SELECT {_COLUMNS} FROM records WHERE db = ? AND tbl = ? AND key = ?"
                " AND (expires IS NULL OR expires > ?)",
                (database, table, key, self._clock()),
            ).fetchone()
        )
        return None if found is None else _row(found)

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
        sql = f"SELECT {_COLUMNS} FROM records {where} ORDER BY key {order} LIMIT ? OFFSET ?"
        rows = await self._read(lambda c: c.execute(sql, (*values, limit, offset)).fetchall())
        return [_row(row) for row in rows]

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
        rows = await self._read(lambda c: c.execute(sql, (*values, limit, offset)).fetchall())
        return [row[0] for row in rows]

    def _where(
        self, database: str, table: str, prefix: str, suffix: str
    ) -> tuple[str, tuple[Any, ...]]:
        """A range over the primary key for the prefix; never LIKE, whose wildcards are data."""
        where = "WHERE db = ? AND tbl = ? AND (expires IS NULL OR expires > ?)"
        values: list[Any] = [database, table, self._clock()]
        if prefix:
            where += " AND key >= ? AND substr(key, 1, ?) = ?"
            values += [prefix, len(prefix), prefix]
            end = _after(prefix)
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

    async def data_version(self) -> int:
        """Grows when anybody writes; the counter itself, as each reader has its own PRAGMA."""
        return await self.revision()

    async def changes(self, after: int) -> tuple[int, list[tuple[int, str, str, str, str]]]:
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

    async def blobs(self, prefix: str) -> list[tuple[str, int]]:
        return await self._read(
            lambda c: c.execute(
                "SELECT key, size FROM blobs WHERE substr(key, 1, ?) = ? ORDER BY key",
                (len(prefix), prefix),
            ).fetchall()
        )


def _apply(connection: sqlite3.Connection, database: str, row: Operation, now: float) -> int:
    place = (database, row.table, row.key)
    found = connection.execute(
        "SELECT version, expires FROM records WHERE db = ? AND tbl = ? AND key = ?", place
    ).fetchone()
    live = found is not None and (found[1] is None or found[1] > now)
    version = found[0] if live else 0
    if row.expected is not None and row.expected != version:
        raise checks.conflict("/".join(place), row.expected, version)
    if isinstance(row, Check):
        return 0
    if isinstance(row, Put):
        number = _next(connection, Action.PUT, place)
        connection.execute("INSERT OR IGNORE INTO tables VALUES (?, ?)", place[:2])
        connection.execute(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *place,
                row.value,
                json.dumps(dict(row.metadata)),
                None if row.expiry is None else now + row.expiry,
                number,
            ),
        )
        return number
    if found is not None:
        _delete(connection, *place)
    return 0


def _delete(connection: sqlite3.Connection, database: str, table: str, key: str) -> None:
    place = (database, table, key)
    connection.execute("DELETE FROM records WHERE db = ? AND tbl = ? AND key = ?", place)
    _next(connection, Action.DELETE, place)


def _next(connection: sqlite3.Connection, action: Action, place: tuple[str, str, str]) -> int:
    """The next version, entered in the history."""
    number = int(
        connection.execute(
            "UPDATE counter SET revision = revision + 1 RETURNING revision"
        ).fetchone()[0]
    )
    connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", (number, action.value, *place))
    if number % 100 == 0:
        connection.execute("DELETE FROM changes WHERE revision <= ?", (number - HISTORY,))
    return number


def _row(found: Sequence[Any]) -> Row:
    return Row(found[0], bytes(found[1]), json.loads(found[2]), found[3], found[4])


def _after(prefix: str) -> str:
    """The first string that sorts after all that begin with ``prefix``; "" when there is none."""
    for at in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[at])
        if point < 0x10FFFF:
            point += 1
            if 0xD800 <= point <= 0xDFFF:  # surrogates are no characters
                point = 0xE000
            return prefix[:at] + chr(point)
    return ""
