"""A broker to which a namespace may publish so many messages a second; ``meter.py`` counts them."""

from __future__ import annotations

from collections.abc import Mapping

from micro_ray.broker import DEFAULT, Broker, Subscription
from micro_ray.finding import Examined, Finding
from micro_ray.limits import Kind
from micro_ray.limits.gate import Gate
from micro_ray.limits.meter import Meter

__all__ = ["MeteredBroker"]


class MeteredBroker(Broker):
    """``broker`` is its owner's to open and close; ``gate`` keeps limits of the kind BROKER."""

    def __init__(self, broker: Broker, gate: Gate) -> None:
        self._broker = broker
        self._meter = Meter(gate, Kind.BROKER)

    async def examine(self) -> list[Finding]:
        """What the broker itself finds."""
        return await self._broker.examine() if isinstance(self._broker, Examined) else []

    async def close(self) -> None:
        """The broker is not ours."""

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
    ) -> None:
        await self._meter.enter(namespace)
        await self._broker.publish(topic, body, headers=headers, namespace=namespace)

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Subscription:
        return self._broker.subscribe(topic, queue=queue, namespace=namespace)

    async def check(self) -> None:
        await self._broker.check()
