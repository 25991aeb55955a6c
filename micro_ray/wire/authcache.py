"""The auth caches' face on frames."""

from __future__ import annotations

from collections.abc import AsyncIterator

from micro_ray.auth import Update
from micro_ray.auth.cache import Cache, Status
from micro_ray.auth.known import split
from micro_ray.wire.auth import bearer
from micro_ray.wire.closing import closing
from micro_ray.wire.endpoints import Endpoints

__all__ = ["endpoints"]

NAME = "authcache"


def endpoints(cache: Cache) -> Endpoints:
    """Service ``authcache``: what guards follow, and how it stands."""

    async def follow(namespace: str | None = None, mark: str = "") -> AsyncIterator[Update]:
        """Keys, rules and revocations, then what changes; large ones in parts."""
        async with closing(cache.follow(namespace, mark=mark, by=bearer())) as updates:
            async for update in updates:
                for part in split(update):
                    yield part

    async def status() -> Status:
        """What is known, and how many follow it."""
        return await cache.status()

    table = Endpoints(NAME)
    table.add("AuthCache.Follow", follow)
    table.add("AuthCache.Status", status)
    return table
