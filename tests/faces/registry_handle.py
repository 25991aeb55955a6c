"""The registry by its actor's handle. It is the platform's own, so a test sees of it what is in the
namespaces of the test, and takes that out at its end."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from micro_ray.registry import DEFAULT_TTL, Change, Instance, Registry, Service, Snapshot
from tests.faces.handle import Handle
from tests.faces.rows import Rows

__all__ = ["ROWS", "HandleRegistry"]

_HISTORY = "10,000 changes, the backend's own to keep"

ROWS = Rows(
    verbs={"close": "the actor is shared, it is not one test's to close"},
    fail={
        "test_what_is_taken[longest names]": "a namespace of a test is another at the actor, longer"
    },
    dear={
        "test_closing_ends_watchers": "the actor is shared, it is not one test's to close",
        "test_what_is_no_longer_kept": _HISTORY,
        "test_a_watcher_that_falls_behind": _HISTORY,
    },
)


class HandleRegistry(Registry):
    """The interface over ``ray.get_actor("registry", namespace="micro")``."""

    def __init__(self) -> None:
        self._handle = Handle("registry")

    async def close(self) -> None:
        ROWS.lacks("close")

    async def leave(self) -> None:
        """Take out what the test has left."""
        for instance in (await self.snapshot()).instances:
            await self.deregister(instance.namespace, instance.node.id)

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        there = replace(instance, namespace=self._handle.space.to(instance.namespace))
        await self._handle.call("register", there, ttl=ttl, holder=holder)

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> builtins.list[str]:
        return await self._handle.call("renew", self._handle.space.to(namespace), node_ids)

    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        space = self._handle.space.to(namespace)
        await self._handle.call("deregister", space, node_id, holder=holder)

    async def get(self, namespace: str, service: str) -> builtins.list[Service]:
        found = await self._handle.call("get", self._handle.space.to(namespace), service)
        return [replace(row, namespace=namespace) for row in found]

    async def list(self, namespace: str) -> builtins.list[Service]:
        found = await self._handle.call("list", self._handle.space.to(namespace))
        return [
            replace(row, namespace=self._own(row.namespace))
            for row in found
            if row.namespace.startswith(self._handle.space.mark)
        ]

    async def snapshot(self) -> Snapshot:
        whole = await self._handle.call("snapshot")
        return replace(whole, instances=tuple(map(self._back, filter(self._mine, whole.instances))))

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        stream = self._handle.stream("watch", epoch=epoch, revision=revision)
        async with aclosing(stream) as changes:  # type: ignore[type-var]
            async for change in changes:
                if self._mine(change.instance):
                    yield replace(change, instance=self._back(change.instance))

    def _own(self, namespace: str) -> str:
        return namespace.removeprefix(self._handle.space.mark)

    def _mine(self, instance: Instance) -> bool:
        return instance.namespace.startswith(self._handle.space.mark)

    def _back(self, instance: Instance) -> Instance:
        return replace(instance, namespace=self._own(instance.namespace))
