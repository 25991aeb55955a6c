"""A store whose namespaces may keep so much and no more.

What a namespace keeps is counted by the store (:meth:`Store.usage`), not with each write: between
two counts this process adds up what it writes, as if nothing were replaced or removed. So it never
believes in less than its own writes have made; before it refuses one it counts anew, at most once a
second, and looks what it would replace. What other processes write meanwhile it learns with the
next count: **the quota may be exceeded by what they write in** :data:`EVERY` **seconds** (or twenty
times the seconds that a count takes, if that is more). Counts are made beside the writes, but for
the first. Namespaces without a quota cost a look into a dictionary.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from micro_ray.errors import NotFound, TooLarge
from micro_ray.finding import Examined, Finding
from micro_ray.limits import Quota
from micro_ray.limits.gate import Gate
from micro_ray.store import DEFAULT, Blob, Change, Operation, Put, Record, Store, Usage

__all__ = ["QuotaStore"]

log = logging.getLogger(__name__)

#: Seconds between two counts of a namespace that is being written to, and between two when it is
#: full.
EVERY, AGAIN = 5.0, 1.0
#: Part of the time that is spent on counting, at most.
SHARE = 0.05
#: What the platform itself keeps here: config, by which quotas are set, and auth, without which
#: nobody could log in and set them.
EXEMPT = frozenset(("auth", "config"))


@dataclass(slots=True)
class _Tally:
    """What a namespace keeps, as far as is known: counted ``at``, in ``took`` seconds. ``new_...``
    is what a count that is under way may not have seen: writes that were being made when it began,
    and those since; ``open_...`` is what is being written."""

    records: int = 0
    bytes: int = 0
    new_records: int = 0
    new_bytes: int = 0
    open_records: int = 0
    open_bytes: int = 0
    at: float = float("-inf")
    took: float = 0.0
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)


class QuotaStore(Store):
    """``store`` is its owner's to open and close; ``gate`` knows the quotas. An ``async with``, for
    the counts that are under way."""

    def __init__(
        self, store: Store, gate: Gate, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock
        self._tallies: dict[str, _Tally] = {}
        self._counts: set[asyncio.Task[None]] = set()

    async def examine(self) -> list[Finding]:
        """What the store itself finds."""
        return await self._store.examine() if isinstance(self._store, Examined) else []

    async def close(self) -> None:
        """End the counts."""
        for task in self._counts:
            task.cancel()
        await asyncio.gather(*self._counts, return_exceptions=True)

    # -- what takes room ---------------------------------------------------------------------------

    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        quota = self._gate.quota(namespace)
        if quota is None or database in EXEMPT:
            return await self._store.transact(operations, database=database, namespace=namespace)
        puts = [row for row in operations if isinstance(row, Put)]
        records, size = len(puts), sum(len(put.key.encode()) + len(put.value) for put in puts)
        try:
            tally = await self._take(namespace, quota, records, size)
        except TooLarge:
            # What is replaced is looked at only where it decides.
            old, bytes_ = await self._replaced(puts, database, namespace)
            records, size = records - old, size - bytes_
            tally = await self._take(namespace, quota, records, size)
        tally.open_records += records
        tally.open_bytes += size
        try:
            return await self._store.transact(operations, database=database, namespace=namespace)
        finally:
            tally.open_records -= records
            tally.open_bytes -= size

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        if self._gate.quota(namespace) is not None:
            chunks = self._metered(chunks, namespace)
        return await self._store.write_blob(key, chunks, namespace=namespace)

    async def _metered(self, chunks: AsyncIterable[bytes], namespace: str) -> AsyncIterator[bytes]:
        quota, opened, tally = self._gate.quota(namespace), 0, None
        try:
            async for chunk in chunks:
                if quota is not None:
                    tally = await self._take(namespace, quota, 0, len(chunk))
                    tally.open_bytes += len(chunk)
                    opened += len(chunk)
                yield chunk
        finally:
            if tally is not None:
                tally.open_bytes -= opened

    async def _replaced(
        self, puts: Sequence[Put], database: str, namespace: str
    ) -> tuple[int, int]:
        """How many records are there under the keys of some puts, and their bytes."""
        records = size = 0
        for table, key in {(put.table, put.key) for put in puts}:
            with contextlib.suppress(NotFound):
                found = await self._store.read(
                    key, database=database, table=table, namespace=namespace
                )
                records += 1
                size += len(key.encode()) + len(found.value)
        return records, size

    async def _take(self, namespace: str, quota: Quota, records: int, size: int) -> _Tally:
        """Room for so much more. Raises TooLarge."""
        tally = self._tallies.setdefault(namespace, _Tally())
        period = max(EVERY, tally.took / SHARE)
        if tally.at == float("-inf"):
            await self._count(namespace, tally, period)
        elif self._clock() >= tally.at + period and not tally.counting.locked():
            task = asyncio.create_task(self._count(namespace, tally, period))
            self._counts.add(task)
            task.add_done_callback(self._counted)
        if (records > 0 or size > 0) and _over(quota, tally, records, size):
            await self._count(namespace, tally, max(AGAIN, tally.took / SHARE))
            over = _over(quota, tally, records, size)
            if over:
                raise TooLarge(
                    "store",
                    f"namespace {namespace} may keep {over}; remove what is not needed, or have "
                    "its quota raised (config limits.store)",
                )
        tally.records += records
        tally.bytes += size
        tally.new_records += records
        tally.new_bytes += size
        return tally

    def _counted(self, task: asyncio.Task[None]) -> None:
        self._counts.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("what is kept could not be counted: %s", task.exception())

    async def _count(self, namespace: str, tally: _Tally, period: float) -> None:
        """Count unless somebody has, within the period."""
        async with tally.counting:
            begun = self._clock()
            if begun < tally.at + period:
                return
            tally.new_records, tally.new_bytes = tally.open_records, tally.open_bytes
            found = await self._store.usage(namespace=namespace)
            tally.records = found.records + tally.new_records
            tally.bytes = found.bytes + found.blob_bytes + tally.new_bytes
            tally.at, tally.took = begun, self._clock() - begun

    # -- the rest is the store's -------------------------------------------------------------------

    async def read(self, key: str, **place: Any) -> Record:
        return await self._store.read(key, **place)

    async def query(self, **options: Any) -> list[Record]:
        return await self._store.query(**options)

    async def keys(self, **options: Any) -> list[str]:
        return await self._store.keys(**options)

    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        return await self._store.databases(namespace=namespace)

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        return await self._store.tables(database, namespace=namespace)

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        return await self._store.usage(namespace=namespace)

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        return await self._store.revision(namespace=namespace)

    def watch(self, **options: Any) -> AsyncIterator[Change]:
        return self._store.watch(**options)

    def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        return self._store.read_blob(key, namespace=namespace)

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        return await self._store.delete_blob(key, namespace=namespace)

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        return await self._store.blobs(prefix=prefix, namespace=namespace)


def _over(quota: Quota, tally: _Tally, records: int, size: int) -> str:
    """Which part of a quota there is no room in, in words; blank when there is."""
    if quota.bytes and tally.bytes + size > quota.bytes:
        return f"{quota.bytes} bytes in the store and keeps {tally.bytes}"
    if quota.records and tally.records + records > quota.records:
        return f"{quota.records} records in the store and keeps {tally.records}"
    return ""
