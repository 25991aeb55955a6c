"""The store's actor: ``ray.get_actor("store", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from micro_ray.actors.backends import open_store
from micro_ray.actors.member import Member
from micro_ray.actors.streams import Chunks, pieces, streamed
from micro_ray.limits import Kind
from micro_ray.limits.quota_store import QuotaStore
from micro_ray.store import Blob, Change, Operation, Record, Usage
from micro_ray.wire import store as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.own import Own

__all__ = ["StoreActor"]


class StoreActor(Member):
    """The verbs of :class:`~micro_ray.store.Store`."""

    service = "store"

    async def open(self) -> Endpoints:
        store = await self._stack.enter_async_context(open_store(self.settings))
        gate = await self.gate(Kind.STORE, self.settings.pools.store)
        self.backend = await self._stack.enter_async_context(QuotaStore(store, gate))
        return face.endpoints(self.backend, Own(self.settings.namespace))

    async def read(self, key: str, **place: Any) -> Record:
        return await self.backend.read(key, **place)

    async def write(self, key: str, value: bytes, **options: Any) -> Record:
        return await self.backend.write(key, value, **options)

    async def delete(self, key: str, **options: Any) -> None:
        await self.backend.delete(key, **options)

    async def query(self, **options: Any) -> list[Record]:
        return await self.backend.query(**options)

    async def keys(self, **options: Any) -> list[str]:
        return await self.backend.keys(**options)

    async def transact(self, operations: Sequence[Operation], **options: Any) -> list[int]:
        return await self.backend.transact(operations, **options)

    async def databases(self, **options: Any) -> list[str]:
        return await self.backend.databases(**options)

    async def tables(self, database: str = "micro", **options: Any) -> list[str]:
        return await self.backend.tables(database, **options)

    async def usage(self, **options: Any) -> Usage:
        return await self.backend.usage(**options)

    async def revision(self, **options: Any) -> int:
        return await self.backend.revision(**options)

    @streamed()
    def watch(self, *, revision: int, **options: Any) -> AsyncIterator[Change]:
        """A stream, for ever: end it with ``ray.cancel``."""
        return self.backend.watch(revision=revision, **options)

    async def write_blob(self, key: str, chunks: Chunks, **options: Any) -> Blob:
        """``chunks``: bytes, or pieces that are bytes or object references, each taken when it is
        its turn."""
        return await self.backend.write_blob(key, pieces(chunks, self.service), **options)

    @streamed()
    def read_blob(self, key: str, **options: Any) -> AsyncIterator[bytes]:
        """A stream: end it with ``ray.cancel`` when it is not read to its end."""
        return self.backend.read_blob(key, **options)

    async def delete_blob(self, key: str, **options: Any) -> bool:
        return await self.backend.delete_blob(key, **options)

    async def blobs(self, **options: Any) -> list[Blob]:
        return await self.backend.blobs(**options)
