"""A store whose namespaces may keep so much, and do so much, and no more.

``tally.py`` counts what is kept, ``meter.py`` what is done: each call of a verb is an operation, a
transaction too. What a write would replace is looked at before it is refused. A namespace without a
quota and a rate costs two looks into a dictionary.

What the platform itself keeps here is config, by which quotas are set, and auth, without which
nobody could log in and set them. Neither is refused, nor is what is done with them, where the
platform does it: whoever else writes to databases of these names is limited as anywhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any, cast

from micro_ray.auth.records import DATABASE as AUTH
from micro_ray.config.records import DATABASE as CONFIG
from micro_ray.errors import NotFound, TooLarge
from micro_ray.finding import Examined, Finding
from micro_ray.limits import Kind, Quota
from micro_ray.limits.gate import Gate
from micro_ray.limits.meter import Meter, nobody_asks, platform_itself
from micro_ray.limits.tally import Amounts, Taken, Tallies
from micro_ray.store import DEFAULT, Blob, Change, Operation, Put, Record, Store, Usage

__all__ = ["OWN", "QuotaStore"]

#: Databases of the platform's own.
OWN = frozenset((AUTH, CONFIG))


class QuotaStore(Store):
    """``store`` is its owner's to open and close; ``gate`` knows the quotas, and keeps limits of
    the kind STORE. An ``async with``, for the counts that are under way."""

    def __init__(
        self, store: Store, gate: Gate, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._gate = gate
        self._meter = Meter(gate, Kind.STORE)
        self._tallies = Tallies(
            "store",
            ("bytes", "records"),
            self._count,
            where="in the store",
            remedy="remove what is not needed",
            clock=clock,
        )

    async def examine(self) -> list[Finding]:
        """What the store itself finds."""
        return await self._store.examine() if isinstance(self._store, Examined) else []

    async def close(self) -> None:
        """End the counts."""
        await self._tallies.close()

    async def _count(self, namespace: str) -> Amounts:
        found = await self._store.usage(namespace=namespace)
        return found.bytes + found.blob_bytes, found.records

    async def _enter(
        self, *, namespace: str = DEFAULT, database: str = DEFAULT, **rest: Any
    ) -> None:
        """Count an operation. Raises TooManyRequests."""
        if not _exempt(database):
            await self._meter.enter(namespace)

    # -- what takes room ---------------------------------------------------------------------------

    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        await self._enter(namespace=namespace, database=database)
        quota = self._gate.rules(namespace).store
        if quota is None or _exempt(database):
            return await self._store.transact(operations, database=database, namespace=namespace)
        puts = [row for row in operations if isinstance(row, Put)]
        more = sum(len(put.key.encode()) + len(put.value) for put in puts), len(puts)
        try:
            taken = await self._take(namespace, quota, more)
        except TooLarge:
            # What is replaced is looked at only where it decides.
            size, records = await self._replaced(puts, database, namespace)
            taken = await self._take(namespace, quota, (more[0] - size, more[1] - records))
        with taken:
            return await self._store.transact(operations, database=database, namespace=namespace)

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        await self._enter(namespace=namespace)
        quota = self._gate.rules(namespace).store
        if quota is not None:
            chunks = self._metered(chunks, quota, namespace)
        return await self._store.write_blob(key, chunks, namespace=namespace)

    async def _metered(
        self, chunks: AsyncIterable[bytes], quota: Quota, namespace: str
    ) -> AsyncIterator[bytes]:
        with await self._take(namespace, quota, (0, 0)) as taken:
            async for chunk in chunks:
                await self._take(namespace, quota, (len(chunk), 0), taken)
                yield chunk

    async def _replaced(
        self, puts: Sequence[Put], database: str, namespace: str
    ) -> tuple[int, int]:
        """The bytes of the records that are there under the keys of some puts, and how many."""
        records = size = 0
        for table, key in {(put.table, put.key) for put in puts}:
            with contextlib.suppress(NotFound):
                found = await self._store.read(
                    key, database=database, table=table, namespace=namespace
                )
                records += 1
                size += len(key.encode()) + len(found.value)
        return size, records

    async def _take(
        self, namespace: str, quota: Quota, more: Amounts, into: Taken | None = None
    ) -> Taken:
        return await self._tallies.take(namespace, (quota.bytes, quota.records), more, into)

    # -- the rest is the store's -------------------------------------------------------------------

    async def read(self, key: str, **place: Any) -> Record:
        await self._enter(**place)
        return await self._store.read(key, **place)

    async def query(self, **options: Any) -> list[Record]:
        await self._enter(**options)
        return await self._store.query(**options)

    async def keys(self, **options: Any) -> list[str]:
        await self._enter(**options)
        return await self._store.keys(**options)

    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        await self._enter(namespace=namespace)
        return await self._store.databases(namespace=namespace)

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        await self._enter(namespace=namespace, database=database)
        return await self._store.tables(database, namespace=namespace)

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        await self._enter(namespace=namespace)
        return await self._store.usage(namespace=namespace)

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        await self._enter(namespace=namespace)
        return await self._store.revision(namespace=namespace)

    async def watch(self, **options: Any) -> AsyncIterator[Change]:
        await self._enter(**options)
        watch = cast("AsyncGenerator[Change, None]", self._store.watch(**options))
        async with contextlib.aclosing(watch) as changes:
            async for change in changes:
                yield change

    async def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        await self._enter(namespace=namespace)
        blob = self._store.read_blob(key, namespace=namespace)
        async with contextlib.aclosing(cast("AsyncGenerator[bytes, None]", blob)) as pieces:
            async for piece in pieces:
                yield piece

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        await self._enter(namespace=namespace)
        return await self._store.delete_blob(key, namespace=namespace)

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        await self._enter(namespace=namespace)
        return await self._store.blobs(prefix=prefix, namespace=namespace)


def _exempt(database: str) -> bool:
    """Whether what is done is the platform's own: with its databases, by it, or by whom nobody asks
    who he is."""
    return database in OWN and (nobody_asks() or platform_itself())
