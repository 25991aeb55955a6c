"""The runtime's actor: ``ray.get_actor("runtime", namespace="micro")``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from micro_ray.actors.member import Member
from micro_ray.runtime import LogLine, Status, Workload
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.process import ProcessDriver
from micro_ray.runtime.ray import RayDriver
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.settings import service_environ
from micro_ray.wire import runtime as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.store import RemoteStore

__all__ = ["RuntimeActor"]

#: Seconds that replicas have to finish when the platform stops.
HALT = 5.0


class RuntimeActor(Member):
    service = "runtime"

    async def open(self) -> Endpoints:
        settings = self.settings
        network, table = await self.network()
        store = RemoteStore(network)
        archives = Archives(
            store,
            settings.state,
            namespace=settings.namespace,
            limit=settings.runtime.max_source,
        )
        drivers = {
            "ray": RayDriver(
                settings.state,
                self.bootstrap,
                archive=archives.packed,
                log_limit=settings.runtime.log_bytes,
            ),
            "process": ProcessDriver(
                settings.state,
                environ=service_environ(self.bootstrap, settings),
                known=table.has,
                anchor=settings.anchor,
                grace=settings.runtime.drain_timeout,
                log_limit=settings.runtime.log_bytes,
            ),
        }
        self.backend = await self._stack.enter_async_context(
            Reconciler(
                store,
                drivers,
                settings.state,
                archives=archives,
                namespace=settings.namespace,
                settings=settings.runtime,
                gate=face.gate(network),
            )
        )
        return face.endpoints(self.backend)

    async def stop(self) -> None:
        """Stop all replicas in good order; what is desired stays as it is."""
        await self.backend.halt(HALT)
        await super().stop()

    async def create(self, workload: Workload) -> Status:
        return await self.backend.create(workload)

    async def update(
        self, name: str, changes: Mapping[str, Any], namespace: str = "micro"
    ) -> Status:
        return await self.backend.update(name, namespace, changes)

    async def remove(self, name: str, namespace: str = "micro") -> None:
        await self.backend.delete(name, namespace)

    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        return await self.backend.read(name, namespace)

    async def logs(self, name: str, namespace: str = "micro", tail: int = 15) -> list[LogLine]:
        return [line async for line in self.backend.logs(name, namespace, tail=tail)]

    async def upload(self, archive: bytes, namespace: str = "micro") -> str:
        return await self.backend.upload(archive, namespace)
