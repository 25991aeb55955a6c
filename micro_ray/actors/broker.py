"""The broker's actor: ``ray.get_actor("broker", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from micro_ray.actors.backends import open_broker
from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.broker import Message
from micro_ray.limits import Kind
from micro_ray.limits.metered_broker import MeteredBroker
from micro_ray.wire import broker as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["BrokerActor"]


class BrokerActor(Member):
    """The verbs of :class:`~micro_ray.broker.Broker`."""

    service = "broker"

    async def open(self) -> Endpoints:
        broker = await self._stack.enter_async_context(open_broker(self.settings))
        gate = await self.gate(Kind.BROKER, self.settings.pools.broker)
        self.backend = MeteredBroker(broker, gate)
        return face.endpoints(self.backend)

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = "micro",
    ) -> None:
        await self.backend.publish(topic, body, headers=headers, namespace=namespace)

    @streamed()
    async def subscribe(
        self, topic: str, *, queue: str = "", namespace: str = "micro", confirm: bool = False
    ) -> AsyncGenerator[Message, None]:
        """The messages of a subscription: a stream, for ever. End it with ``ray.cancel``. With
        ``confirm`` the first is an empty one that says that the subscription is in force."""
        async with self.backend.subscribe(topic, queue=queue, namespace=namespace) as messages:
            if confirm:
                yield Message(topic=topic)
            async for message in messages:
                yield message

    async def check(self) -> None:
        await self.backend.check()
