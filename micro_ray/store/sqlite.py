"""The store in SQLite: one file per namespace, any number of processes.

WAL with ``synchronous=FULL``: a commit is on disk (fsync of the log) before the write is
acknowledged, so neither a killed process nor a power failure loses an acknowledged write, as far as
the disk keeps what it has confirmed. Writes that wait together share one commit; each is a
savepoint, so one that is refused takes nothing with it. Changes made by another process are looked
for every 20 ms while somebody watches.

Blobs are files beside the database, written under a random name, fsynced with their folder, and
then entered in the database, which makes them visible: a database is no place for a gigabyte, and a
stream is never held whole. What a killed process left of a blob is removed a day later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from micro_ray.errors import InternalError, MicroError, NotFound, Unavailable
from micro_ray.files import fsync_folder
from micro_ray.sqlite import failure, make_folder
from micro_ray.store import (
    DEFAULT,
    MAX_KEYS,
    MAX_RECORDS,
    Action,
    Blob,
    Change,
    Operation,
    Record,
    Store,
    Usage,
    checks,
)
from micro_ray.store.sqlite_file import File
from micro_ray.store.sqlite_rows import Row

__all__ = ["SqliteStore"]

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between sweeps of expired records.
SWEEP = 5.0
#: Seconds between looks for files of blobs that were never entered, and the age of those removed.
SWEEP_BLOBS = 3600.0
LEFT_BEHIND = 86_400.0
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
        self._closed = False

    async def __aenter__(self) -> SqliteStore:
        await _on_disk(self._folder, make_folder, self._folder)
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        async with self._opening:
            for file in self._files.values():
                await file.close()
            self._files.clear()

    async def _file(self, namespace: str) -> File:
        """The namespace's file, made if need be."""
        file = self._files.get(namespace)
        if file is not None:
            return file
        checks.name("namespace", namespace)
        async with self._opening:
            if self._closed:
                raise Unavailable("store", "the store is closed")
            if namespace not in self._files:
                file = File(self._folder / f"{namespace}.db", clock=self._clock)
                await file.open()
                self._files[namespace] = file
            return self._files[namespace]

    async def _existing(self, namespace: str) -> File | None:
        """The namespace's file, if there is one: to ask makes nothing."""
        if namespace not in self._files:
            checks.name("namespace", namespace)
            path = self._folder / f"{namespace}.db"
            if not await asyncio.to_thread(path.exists):
                return None
        return await self._file(namespace)

    async def _sweep(self) -> None:
        blobs_at = 0.0
        while True:
            await asyncio.sleep(SWEEP)
            with contextlib.suppress(Exception):  # the next sweep tries again
                await self.sweep()
            if self._files and time.monotonic() > blobs_at:
                blobs_at = time.monotonic() + SWEEP_BLOBS
                with contextlib.suppress(Exception):
                    await self.sweep_blobs()

    async def sweep(self) -> None:
        """Remove records that have expired, and tell watchers; done every 5 s by itself."""
        for file in list(self._files.values()):
            while await file.expire():
                pass

    async def sweep_blobs(self) -> None:
        """Remove files of blobs that were never entered and have not been written to for a day;
        done every hour by itself."""
        for namespace, file in list(self._files.items()):
            folder, before = self._blob_folder(namespace), self._clock() - LEFT_BEHIND
            old = await _on_disk(folder, _older, folder, before)
            known = set(await file.names("SELECT file FROM blobs")) if old else set()
            for path in old:
                if path.name not in known:
                    await _on_disk(path, path.unlink, missing_ok=True)

    # -- records ---------------------------------------------------------------------------------

    async def read(
        self, key: str, *, database: str = DEFAULT, table: str = DEFAULT, namespace: str = DEFAULT
    ) -> Record:
        checks.key(key)
        checks.name("database", database)
        checks.name("table", table)
        file = await self._existing(namespace)
        row = await file.read(database, table, key) if file is not None else None
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
        checks.page(prefix, suffix, limit, offset, order)
        checks.name("database", database)
        checks.name("table", table)
        file = await self._existing(namespace)
        if file is None:
            return []
        most = min(limit or MAX_RECORDS + 1, MAX_RECORDS + 1)
        rows = await file.query(database, table, prefix, suffix, most, offset, order)
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
        checks.page(prefix, suffix, limit, offset, order)
        checks.name("database", database)
        checks.name("table", table)
        file = await self._existing(namespace)
        if file is None:
            return []
        most = min(limit or MAX_KEYS + 1, MAX_KEYS + 1)
        return await file.keys(database, table, prefix, suffix, most, offset, order)

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
        file = await self._existing(namespace)
        if file is None:
            return []
        return await file.names("SELECT DISTINCT db FROM tables ORDER BY db")

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        checks.name("database", database)
        file = await self._existing(namespace)
        if file is None:
            return []
        return await file.names("SELECT tbl FROM tables WHERE db = ? ORDER BY tbl", database)

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        file = await self._existing(namespace)
        return Usage() if file is None else await file.usage()

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        file = await self._existing(namespace)
        return 0 if file is None else await file.revision()

    async def watch(
        self,
        *,
        revision: int,
        prefix: str = "",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Change]:
        checks.name("database", database)
        checks.name("table", table)
        checks.part("prefix", prefix)
        file = await self._file(namespace)
        async with contextlib.aclosing(file.watch(revision)) as changes:
            async for number, action, db, tbl, key in changes:
                if (db, tbl) == (database, table) and key.startswith(prefix):
                    yield Change(
                        revision=number, action=Action(action), database=db, table=tbl, key=key
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
        await _on_disk(folder, make_folder, folder)
        path = folder / os.urandom(16).hex()
        try:
            size = await _pour(path, chunks)
            # From here on the file may be entered, also when this task is cancelled: then the old
            # file, or this one, is left to the sweeper.
            entering = asyncio.create_task(file.enter_blob(key, path.name, size))
        except BaseException:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            raise
        try:
            old = await asyncio.shield(entering)
        except MicroError:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            raise
        if old is not None:
            await _on_disk(folder, (folder / old).unlink, missing_ok=True)
        return Blob(key=key, size=size)

    async def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        checks.key(key)
        source = await self._open_blob(key, namespace)
        try:
            while piece := await _on_disk(Path(source.name), source.read, _BLOB_PIECE):
                yield piece
        finally:
            await asyncio.to_thread(source.close)

    async def _open_blob(self, key: str, namespace: str) -> BinaryIO:
        file = await self._existing(namespace)
        last = None
        while file is not None and (name := await file.blob(key)) is not None:
            path = self._blob_folder(namespace) / name
            try:
                return await asyncio.to_thread(path.open, "rb")
            except FileNotFoundError:
                pass
            except OSError as error:
                raise Unavailable("store", f"{path}: {error.strerror}", 1.0) from error
            if name == last:
                raise InternalError("store", f"{path} of blob {key!r} is missing; write it again")
            last = name  # it was replaced between the two looks
        raise NotFound("store", f"no blob {key!r}")

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        checks.key(key)
        file = await self._existing(namespace)
        old = await file.drop_blob(key) if file is not None else None
        if old is None:
            return False
        path = self._blob_folder(namespace) / old
        await _on_disk(path, path.unlink, missing_ok=True)
        return True

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        checks.part("prefix", prefix)
        file = await self._existing(namespace)
        if file is None:
            return []
        return checks.answer_blobs(await file.blobs(prefix, MAX_RECORDS + 1))


async def _on_disk(path: Path, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread, with errors that name the path."""
    with failure(path, "store"):
        return await asyncio.to_thread(do, *args, **kwargs)


async def _pour(path: Path, chunks: AsyncIterable[bytes]) -> int:
    """A new file with these bytes, on disk under its name when this returns; its size."""
    size = 0
    out = await _opened(path)
    try:
        async for chunk in checks.blob_chunks(chunks):
            size += len(chunk)
            await _on_disk(path, out.write, chunk)
        await _on_disk(path, _settle, out, path.parent)
    finally:
        with contextlib.suppress(OSError):  # what could not be flushed was said above
            await asyncio.to_thread(out.close)
    return size


async def _opened(path: Path) -> BinaryIO:
    """A new file. Who is cancelled meanwhile leaves none open: the thread goes on and makes it."""
    opening = asyncio.ensure_future(_on_disk(path, path.open, "xb"))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(MicroError):
            await asyncio.to_thread((await opening).close)
        raise


def _settle(out: BinaryIO, folder: Path) -> None:
    out.flush()
    os.fsync(out.fileno())
    fsync_folder(folder)


def _older(folder: Path, before: float) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.stat().st_mtime < before]
