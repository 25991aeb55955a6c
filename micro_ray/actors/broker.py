"""The broker's actor: ``ray.get_actor("broker", namespace="micro")``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from micro_ray.actors.backends import open_broker
from micro_ray.actors.member import Member
from micro_ray.broker import Message
from micro_ray.wire import broker as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["BrokerActor"]


class BrokerActor(Member):
    service = "broker"

    async def open(self) -> Endpoints:
        self.backend = await self._stack.enter_async_context(open_broker(self.settings))
        return face.endpoints(self.backend)

    async def publish(
        self,
        topic: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        namespace: str = "micro",
    ) -> None:
        await self.backend.publish(topic, body, headers=headers, namespace=namespace)

    async def subscribe(
        self,
        topic: str,
        queue: str = "",
        limit: int = 1,
        timeout: float = 10.0,
        namespace: str = "micro",
    ) -> list[Message]:
        """The next ``limit`` messages, or those that came within ``timeout`` seconds. A handle has
        no streams that end with their reader; to listen for long, use frames."""
        found: list[Message] = []
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(timeout),
                self.backend.subscribe(topic, queue=queue, namespace=namespace) as messages,
            ):
                async for message in messages:
                    found.append(message)
                    if len(found) >= limit:
                        break
        return found
