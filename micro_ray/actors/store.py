"""The store's actor: ``ray.get_actor("store", namespace="micro")``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from micro_ray.actors.backends import open_store
from micro_ray.actors.member import Member
from micro_ray.store import Record
from micro_ray.wire import store as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["StoreActor"]


class StoreActor(Member):
    service = "store"

    async def open(self) -> Endpoints:
        self.backend = await self._stack.enter_async_context(open_store(self.settings))
        return face.endpoints(self.backend)

    async def read(self, key: str, **options: Any) -> Record:
        return await self.backend.read(key, **options)

    async def write(self, key: str, value: bytes, **options: Any) -> Record:
        return await self.backend.write(key, value, **options)

    async def delete(self, key: str, **options: Any) -> bool:
        return await self.backend.delete(key, **options)

    async def list(self, prefix: str = "", **options: Any) -> Sequence[str]:
        return await self.backend.list(prefix=prefix, **options)

    async def databases(self) -> Sequence[str]:
        return await self.backend.databases()

    async def tables(self, database: str = "micro") -> Sequence[str]:
        return await self.backend.tables(database)
