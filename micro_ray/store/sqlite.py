"""The store in SQLite: one file per namespace, any number of processes.

WAL with ``synchronous=FULL``: a commit is on disk (fsync of the log) before the write is
acknowledged, so neither a killed process nor a power failure loses an acknowledged write, as far as
the disk keeps what it has confirmed. Writes that wait together share one commit; each is a
savepoint, so one that fails takes nothing with it. A change made by another process is noticed by
SQLite's ``data_version``, asked for every 20 ms while somebody watches.

Blobs are files beside the database, written under another name, fsynced and renamed, and then
entered in it: a database is no place for a gigabyte, and a stream is never held whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from micro_ray.errors import Conflict, NotFound, TooLarge
from micro_ray.store import (
    DEFAULT,
    MAX_ANSWER,
    MAX_RECORDS,
    Action,
    Blob,
    Change,
    Operation,
    Record,
    Store,
    checks,
)
from micro_ray.store.sqlite_file import File, Row, failure

__all__ = ["SqliteStore"]

T = TypeVar("T")

#: Seconds between looks for changes of other processes, while somebody watches.
POLL = 0.02
#: Seconds between sweeps of expired records.
SWEEP = 5.0
#: Keys that one listing may give.
MAX_KEYS = 100_000
_BLOB_PIECE = 64 * 1024


class SqliteStore(Store):
    """``folder`` holds ``<namespace>.db`` and ``blobs/<namespace>/``. ``clock`` is wall-clock
    seconds."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._files: dict[str, File] = {}
        self._opening = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SqliteStore:
        with failure(self._folder):
            await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for file in self._files.values():
            await file.close()
        self._files.clear()

    async def _file(self, namespace: str) -> File:
        file = self._files.get(namespace)
        if file is not None:
            return file
        checks.name("namespace", namespace)
        async with self._opening:
            if namespace not in self._files:
                file = File(self._folder / f"{namespace}.db", clock=self._clock)
                await file.open()
                self._files[namespace] = file
            return self._files[namespace]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            for file in list(self._files.values()):
                with contextlib.suppress(Exception):  # the next sweep tries again
                    await file.expire()

    # -- records ---------------------------------------------------------------------------------

    async def read(
        self, key: str, *, database: str = DEFAULT, table: str = DEFAULT, namespace: str = DEFAULT
    ) -> Record:
        checks.key(key)
        checks.name("database", database)
        checks.name("table", table)
        file = await self._file(namespace)
        row = await file.read(database, table, key)
        if row is None:
            raise NotFound("store", f"no record {key!r} in {database}/{table}")
        return self._record(row)

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
        checks.page(limit, offset, order)
        checks.name("database", database)
        checks.name("table", table)
        file = await self._file(namespace)
        most = min(limit, MAX_RECORDS + 1) if limit else MAX_RECORDS + 1
        rows = await file.query(database, table, prefix, suffix, most, offset, order)
        if len(rows) > MAX_RECORDS or sum(len(row.value) for row in rows) > MAX_ANSWER:
            raise TooLarge(
                "store", f"over {MAX_RECORDS} records or {MAX_ANSWER} bytes; set a limit"
            )
        return [self._record(row) for row in rows]

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
        checks.page(limit, offset, order)
        checks.name("database", database)
        checks.name("table", table)
        file = await self._file(namespace)
        most = limit or MAX_KEYS + 1
        keys = await file.keys(database, table, prefix, suffix, most, offset, order)
        if len(keys) > MAX_KEYS:
            raise TooLarge("store", f"over {MAX_KEYS} keys; set a limit")
        return keys

    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        checks.operations(operations)
        checks.name("database", database)
        file = await self._file(namespace)
        return await file.transact(database, operations)

    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        file = await self._file(namespace)
        return await file.names("SELECT DISTINCT db FROM tables ORDER BY db")

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        checks.name("database", database)
        file = await self._file(namespace)
        return await file.names("SELECT tbl FROM tables WHERE db = ? ORDER BY tbl", database)

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        return await (await self._file(namespace)).revision()

    async def watch(
        self,
        *,
        revision: int,
        prefix: str = "",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Change]:
        file = await self._file(namespace)
        seen = -1
        while True:
            version = await file.data_version()
            if version == seen:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await file.changed.wait()
                continue
            seen = version
            while True:
                oldest, rows = await file.changes(revision)
                if oldest > revision + 1:
                    raise Conflict("store", f"changes after {revision} are no longer kept")
                if not rows:
                    break
                for number, action, db, tbl, key in rows:
                    revision = number
                    if (db, tbl) == (database, table) and key.startswith(prefix):
                        yield Change(
                            revision=number,
                            action=Action(action),
                            database=db,
                            table=tbl,
                            key=key,
                        )

    def _record(self, row: Row) -> Record:
        left = None if row.expires is None else max(0.0, row.expires - self._clock())
        return Record(
            key=row.key,
            value=row.value,
            metadata=row.metadata,
            expiry=left,
            version=row.version,
        )

    # -- blobs -----------------------------------------------------------------------------------

    def _blob_folder(self, namespace: str) -> Path:
        return self._folder / "blobs" / namespace

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        checks.key(key)
        file = await self._file(namespace)
        folder = self._blob_folder(namespace)
        path = folder / os.urandom(16).hex()
        with failure(folder):
            await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            size = 0
            try:
                out = await asyncio.to_thread(path.open, "xb")
                try:
                    async for chunk in checks.blob_chunks(chunks):
                        size += len(chunk)
                        await asyncio.to_thread(out.write, chunk)
                    await asyncio.to_thread(_settle, out, folder)
                finally:
                    await asyncio.to_thread(out.close)
                old = await file.enter_blob(key, path.name, size)
            except BaseException:
                await asyncio.to_thread(path.unlink, missing_ok=True)
                raise
            if old is not None:
                await asyncio.to_thread((folder / old).unlink, missing_ok=True)
        return Blob(key=key, size=size)

    async def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        checks.key(key)
        file = await self._file(namespace)
        name = await file.blob(key)
        if name is None:
            raise NotFound("store", f"no blob {key!r}")
        folder = self._blob_folder(namespace)
        with failure(folder):
            source = await asyncio.to_thread((folder / name).open, "rb")
            try:
                while piece := await asyncio.to_thread(source.read, _BLOB_PIECE):
                    yield piece
            finally:
                await asyncio.to_thread(source.close)

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        checks.key(key)
        file = await self._file(namespace)
        old = await file.drop_blob(key)
        if old is None:
            return False
        await asyncio.to_thread((self._blob_folder(namespace) / old).unlink, missing_ok=True)
        return True

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        file = await self._file(namespace)
        return [Blob(key=key, size=size) for key, size in await file.blobs(prefix)]


def _settle(out: object, folder: Path) -> None:
    """The file's bytes and its name are on disk when this returns."""
    out.flush()  # type: ignore[attr-defined]
    os.fsync(out.fileno())  # type: ignore[attr-defined]
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
