"""The broker by its actor's handle."""

from __future__ import annotations

from collections.abc import Mapping

from micro_ray.broker import Broker, Subscription
from tests.faces.handle import Handle
from tests.faces.rows import Rows
from tests.faces.subscriptions import Taken

__all__ = ["ROWS", "HandleBroker"]

_LIMITS = "the limits of a platform are its settings, and larger than a test reaches"

ROWS = Rows(
    verbs={"close": "the actor is shared, it is not one test's to close"},
    fail={"test_sizes": _LIMITS},
    dear={
        "test_closing_ends_everything": "the actor is shared, it is not one test's to close",
        "test_who_does_not_read_loses_the_oldest_and_learns_it": _LIMITS,
        "test_what_waits_is_bounded_in_bytes": _LIMITS,
        "test_how_many_subscriptions": _LIMITS,
    },
)


class HandleBroker(Broker):
    """The interface over ``ray.get_actor("broker", namespace="micro")``."""

    def __init__(self) -> None:
        self._handle = Handle("broker")

    async def close(self) -> None:
        ROWS.lacks("close")

    async def check(self) -> None:
        await self._handle.call("check")

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = "micro",
    ) -> None:
        space = self._handle.space.to(namespace)
        await self._handle.call("publish", topic, body, headers=headers, namespace=space)

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = "micro") -> Subscription:
        space = self._handle.space.to(namespace)
        return Taken(
            self._handle.stream("subscribe", topic, queue=queue, namespace=space, confirm=True)
        )
