"""The store's actor: ``ray.get_actor("store", namespace="micro")``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from micro_ray.actors.backends import open_store
from micro_ray.actors.member import Member
from micro_ray.store import Operation, Record
from micro_ray.wire import store as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["StoreActor"]


class StoreActor(Member):
    service = "store"

    async def open(self) -> Endpoints:
        self.backend = await self._stack.enter_async_context(open_store(self.settings))
        return face.endpoints(self.backend)

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
