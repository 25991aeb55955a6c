"""The store in memory: for tests and throw-away platforms. Nothing survives the process."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from micro_ray.errors import Conflict, NotFound, Unavailable
from micro_ray.store import (
    DEFAULT,
    HISTORY,
    Action,
    Blob,
    Change,
    Operation,
    Put,
    Record,
    Store,
    Usage,
    checks,
)
from micro_ray.store import Check as CheckOperation

__all__ = ["MemoryStore"]

Place = tuple[str, str, str]  # database, table, key

#: Seconds between looks for what has expired, while somebody watches. Writes look too.
SWEEP = 1.0


@dataclass(slots=True)
class _Space:
    """One namespace: records with the time they end."""

    revision: int = 0
    records: dict[Place, tuple[Record, float]] = field(default_factory=dict)
    ends: list[tuple[float, Place]] = field(default_factory=list)
    tables: set[tuple[str, str]] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    history: deque[Change] = field(default_factory=lambda: deque(maxlen=HISTORY))
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryStore(Store):
    """``clock`` is wall-clock seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._spaces: dict[str, _Space] = {}
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for space in self._spaces.values():
            space.changed.set()
        self._spaces.clear()

    def _space(self, namespace: str, *names: tuple[str, str]) -> _Space:
        if self._closed:
            raise Unavailable("store", "the store is closed")
        checks.name("namespace", namespace)
        for what, name in names:
            checks.name(what, name)
        return self._spaces.setdefault(namespace, _Space())

    def _current(self, space: _Space, place: Place) -> Record | None:
        found = space.records.get(place)
        if found is None:
            return None
        record, until = found
        left = until - self._clock()
        if left <= 0:
            return None
        return record if record.expiry is None else replace(record, expiry=left)

    async def read(
        self, key: str, *, database: str = DEFAULT, table: str = DEFAULT, namespace: str = DEFAULT
    ) -> Record:
        checks.key(key)
        space = self._space(namespace, ("database", database), ("table", table))
        record = self._current(space, (database, table, key))
        if record is None:
            raise NotFound("store", f"no record {key!r} in {database}/{table}")
        return record

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
        space = self._space(namespace, ("database", database), ("table", table))
        keys = self._keys(space, database, table, prefix, suffix, limit, offset, order)
        found = (self._current(space, (database, table, key)) for key in keys)
        return checks.answer(record for record in found if record is not None)

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
        space = self._space(namespace, ("database", database), ("table", table))
        return checks.answer_keys(
            self._keys(space, database, table, prefix, suffix, limit, offset, order)
        )

    def _keys(
        self,
        space: _Space,
        database: str,
        table: str,
        prefix: str,
        suffix: str,
        limit: int,
        offset: int,
        order: str,
    ) -> list[str]:
        keys = sorted(
            (
                key
                for (db, tbl, key) in space.records
                if db == database
                and tbl == table
                and key.startswith(prefix)
                and key.endswith(suffix)
                and self._current(space, (db, tbl, key)) is not None
            ),
            key=lambda k: k.encode(),
            reverse=order == "desc",
        )
        return keys[offset : offset + limit if limit else None]

    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        checks.operations(operations)
        space = self._space(namespace, ("database", database))
        self._expire(space)
        staged: dict[Place, Record | None] = {}
        changes: list[Change] = []
        versions: list[int] = []
        for row in operations:
            place = (database, row.table, row.key)
            now = staged[place] if place in staged else self._current(space, place)
            found = now.version if now is not None else 0
            if row.expected is not None and row.expected != found:
                raise checks.conflict(f"{database}/{row.table}/{row.key}", row.expected, found)
            revision = space.revision + len(changes) + 1
            if isinstance(row, CheckOperation) or (not isinstance(row, Put) and now is None):
                versions.append(0)
                continue
            put = isinstance(row, Put)
            staged[place] = _record(row, revision) if isinstance(row, Put) else None
            changes.append(
                Change(
                    revision=revision,
                    action=Action.PUT if put else Action.DELETE,
                    database=database,
                    table=row.table,
                    key=row.key,
                )
            )
            versions.append(revision if put else 0)
        self._commit(space, staged, changes)
        return versions

    def _commit(
        self, space: _Space, staged: dict[Place, Record | None], changes: Sequence[Change]
    ) -> None:
        now = self._clock()
        for place, record in staged.items():
            if record is None:
                space.records.pop(place, None)
                continue
            until = float("inf") if record.expiry is None else now + record.expiry
            space.records[place] = (record, until)
            space.tables.add(place[:2])
            if record.expiry is not None:
                heapq.heappush(space.ends, (until, place))
        if changes:
            space.revision = changes[-1].revision
            space.history.extend(changes)
            changed, space.changed = space.changed, asyncio.Event()
            changed.set()

    def _expire(self, space: _Space) -> None:
        """Drop what has expired, and say so to watchers."""
        now = self._clock()
        gone: dict[Place, Record | None] = {}
        while space.ends and space.ends[0][0] <= now:
            until, place = heapq.heappop(space.ends)
            found = space.records.get(place)
            if found is not None and found[1] == until:  # not written again meanwhile
                gone[place] = None
        changes = [
            Change(
                revision=revision, action=Action.DELETE, database=place[0], table=place[1],
                key=place[2],
            )
            for revision, place in enumerate(gone, space.revision + 1)
        ]  # fmt: skip
        self._commit(space, gone, changes)

    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        return sorted({database for database, _ in self._space(namespace).tables})

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        space = self._space(namespace, ("database", database))
        return sorted(t for db, t in space.tables if db == database)

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        space = self._space(namespace)
        return Usage(
            records=len(space.records),
            bytes=sum(len(r.key.encode()) + len(r.value) for r, _ in space.records.values()),
            blobs=len(space.blobs),
            blob_bytes=sum(map(len, space.blobs.values())),
        )

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        return self._space(namespace).revision

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
        space = self._space(namespace, ("database", database), ("table", table))
        while not self._closed:
            self._expire(space)
            changed = space.changed
            if revision > space.revision:
                raise checks.beyond(revision, space.revision)
            if revision < space.revision:
                oldest = space.history[0].revision
                if revision + 1 < oldest:
                    raise Conflict("store", f"changes after {revision} are no longer kept")
                for change in list(islice(space.history, revision + 1 - oldest, None)):
                    revision = change.revision
                    here = (change.database, change.table) == (database, table)
                    if here and change.key.startswith(prefix):
                        yield change
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP):
                    await changed.wait()
        raise Unavailable("store", "the store is closed")

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        checks.key(key)
        space = self._space(namespace)
        value = b"".join([chunk async for chunk in checks.blob_chunks(chunks)])
        space.blobs[key] = value
        return Blob(key=key, size=len(value))

    async def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        checks.key(key)
        value = self._space(namespace).blobs.get(key)
        if value is None:
            raise NotFound("store", f"no blob {key!r}")
        for start in range(0, len(value), 64 * 1024):
            yield value[start : start + 64 * 1024]

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        checks.key(key)
        return self._space(namespace).blobs.pop(key, None) is not None

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        checks.part("prefix", prefix)
        blobs = self._space(namespace).blobs
        return checks.answer_blobs(
            [Blob(key=k, size=len(v)) for k, v in sorted(blobs.items()) if k.startswith(prefix)]
        )


def _record(row: Put, version: int) -> Record:
    return Record(
        key=row.key,
        value=row.value,
        metadata=dict(row.metadata),
        expiry=row.expiry,
        version=version,
    )
