"""The auth caches' face on frames."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from micro_ray.auth import Identity, Update
from micro_ray.auth.cache import Cache, Status
from micro_ray.auth.known import split
from micro_ray.auth.passes import LIFE, Issuer, Passes
from micro_ray.context import current
from micro_ray.errors import Forbidden, Unauthorized
from micro_ray.wire.auth import bearer
from micro_ray.wire.closing import closing
from micro_ray.wire.endpoints import Endpoints

__all__ = ["Lives", "endpoints"]

NAME = "authcache"


#: Whether a process, by its namespace and id, is there; True while that cannot be told.
Lives = Callable[[str, str], Awaitable[bool]]


def endpoints(
    cache: Cache,
    passes: Passes | None = None,
    issuer: Issuer | None = None,
    lives: Lives | None = None,
) -> Endpoints:
    """Service ``authcache``: what guards follow, and how it stands; with the platform's ``passes``
    and ``issuer``, credentials for who has proved who he is. They take the platform's key alone, so
    that they are had while auth is away. A process that does not live (``lives``) any more is given
    none: who has its key would be it for ever."""

    async def follow(namespace: str | None = None, mark: str = "") -> AsyncIterator[Update]:
        """Keys, rules and revocations, then what changes; large ones in parts."""
        async with closing(cache.follow(namespace, mark=mark, by=bearer())) as updates:
            async for update in updates:
                for part in split(update):
                    yield part

    async def status() -> Status:
        """What is known, and how many follow it. For the platform."""
        current().within("*")
        return await cache.status()

    async def renew() -> dict[str, str]:
        """A new access token for the process that asks, bound to the same key."""
        identity: Identity | None = current().identity
        if issuer is None or identity is None or not identity.key:
            raise Forbidden(NAME, "a process renews its token by a pass of its own key")
        if lives is not None and not await lives(identity.namespace, identity.id):
            raise Forbidden(NAME, f"{identity.id} runs no more: its token ends")
        scopes = identity.scopes
        return {"access": issuer.issue(identity.id, identity.namespace, scopes, identity.key)}

    async def make_pass(service: str, namespace: str) -> dict[str, Any]:
        """What who asks calls a service with: metadata, and when they are to be renewed."""
        identity: Identity | None = current().identity
        if passes is None or identity is None:
            raise Unauthorized(NAME, "passes are for who has proved who he is: log in")
        metadata = passes.to(namespace, service, identity, handed=True)
        return {"metadata": metadata, "renew": time.time() + LIFE / 2}

    table = Endpoints(NAME)
    table.add("AuthCache.Renew", renew)
    table.add("AuthCache.Pass", make_pass)
    table.add("AuthCache.Follow", follow)
    table.add("AuthCache.Status", status)
    return table
