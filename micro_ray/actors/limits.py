"""The limiter: ``ray.get_actor("limits", namespace="micro")``.

Its state, what it has lent to the doors, is in memory: a door that finds it gone admits its own
part of each limit, and tells a new one what it holds.
"""

from __future__ import annotations

import builtins
from typing import Any

from micro_ray.actors.member import Member
from micro_ray.limits import Rule, Standing, Use
from micro_ray.limits.ledger import Ledger
from micro_ray.limits.stored import StoredLimits
from micro_ray.wire import limits as face
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.endpoints import Endpoints

__all__ = ["LimitsActor"]


class LimitsActor(Member):
    """The verbs of :class:`~micro_ray.limits.Limits`."""

    service = "limits"
    authored = frozenset(("set", "unset"))

    async def open(self) -> Endpoints:
        network, _ = await self.network()
        ledger = Ledger()
        self.backend = StoredLimits(RemoteConfig(network), ledger)
        return face.endpoints(self.backend, face.Lender(ledger))

    async def list(self, **options: Any) -> Standing:
        return await self.backend.list(**options)

    async def set(self, kind: str, name: str = "", **options: Any) -> Rule:
        return await self.backend.set(kind, name, **options)

    async def unset(self, kind: str, name: str = "", **options: Any) -> None:
        await self.backend.unset(kind, name, **options)

    async def usage(self, **options: Any) -> builtins.list[Use]:
        return await self.backend.usage(**options)
