"""The config's actor: ``ray.get_actor("config", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.config import Change, Item, Rotation, Value, Version
from micro_ray.config.stored import StoredConfig
from micro_ray.sealing import KeyFile
from micro_ray.wire import config as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.store import RemoteStore

__all__ = ["ConfigActor"]


class ConfigActor(Member):
    """The verbs of :class:`~micro_ray.config.Config`."""

    service = "config"
    authored = frozenset(
        (
            "get",
            "read",
            "items",
            "set",
            "delete",
            "merge",
            "history",
            "diff",
            "rollback",
            "rotate",
            "watch",
        )
    )

    async def open(self) -> Endpoints:
        settings = self.settings
        network, _ = await self.network()
        self.backend = await self._stack.enter_async_context(
            StoredConfig(
                RemoteStore(network),
                KeyFile(settings.config.key_file),
                limits=settings.config,
                space=settings.namespace,
            )
        )
        return face.endpoints(self.backend)

    async def get(self, path: str = "", default: Any = None, **options: Any) -> Any:
        return await self.backend.get(path, default, **options)

    async def read(self, path: str = "", **options: Any) -> Value:
        return await self.backend.read(path, **options)

    async def items(self, path: str = "", **options: Any) -> list[Item]:
        return await self.backend.items(path, **options)

    async def set(self, path: str, data: Any, **options: Any) -> int:
        return await self.backend.set(path, data, **options)

    async def delete(self, path: str, **options: Any) -> int:
        return await self.backend.delete(path, **options)

    async def merge(self, path: str, patch: Any, **options: Any) -> int:
        return await self.backend.merge(path, patch, **options)

    async def version(self, **options: Any) -> int:
        return await self.backend.version(**options)

    async def history(self, path: str = "", **options: Any) -> list[Version]:
        return await self.backend.history(path, **options)

    async def diff(self, old: int, new: int = 0, **options: Any) -> list[Change]:
        return await self.backend.diff(old, new, **options)

    async def rollback(self, version: int, **options: Any) -> int:
        return await self.backend.rollback(version, **options)

    @streamed()
    def watch(self, path: str = "", **options: Any) -> AsyncIterator[Version]:
        """A stream, for ever: end it with ``ray.cancel``."""
        return self.backend.watch(path, **options)

    async def rotate(self, **options: Any) -> Rotation:
        return await self.backend.rotate(**options)
