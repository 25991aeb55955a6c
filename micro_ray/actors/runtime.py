"""The runtime's actor: ``ray.get_actor("runtime", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from micro_ray.actors.identity import admit, needed
from micro_ray.actors.member import Member
from micro_ray.actors.streams import Chunks, pieces, streamed
from micro_ray.auth.passes import Issuer
from micro_ray.runtime import LogLine, Progress, Replica, Status, Workload
from micro_ray.runtime.admission import Admission, Admit
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
    """The verbs of :class:`~micro_ray.runtime.Runtime`."""

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
        admitting = self._admit()
        drivers = {
            "ray": RayDriver(
                settings.state,
                self.bootstrap,
                archive=archives.packed,
                admit=admitting,
                log_limit=settings.runtime.log_bytes,
            ),
            "process": ProcessDriver(
                settings.state,
                environ=service_environ(self.bootstrap, settings),
                known=table.has,
                anchor=settings.anchor,
                admit=admitting,
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

    def _admit(self) -> Admit | None:
        """Lets replicas in: with a ticket where TCP is TLS, a token where everybody is asked."""
        ticketed = needed(self.settings)
        if self.passes is None:
            return admit if ticketed else None
        issuer = Issuer.of(self.passes.key, self.settings.auth)

        async def admitting(replica: Replica) -> Admission:
            given = await admit(replica) if ticketed else Admission()
            return replace(given, identity=issuer.identity(replica.id, replica.namespace))

        return admitting

    async def stop(self) -> None:
        """Stop all replicas in good order; what is desired stays as it is."""
        await self.backend.halt(HALT)
        await super().stop()

    async def create(self, workload: Workload) -> Status:
        return await self.backend.create(workload)

    async def update(self, name: str, namespace: str, changes: Mapping[str, Any]) -> Status:
        return await self.backend.update(name, namespace, changes)

    async def delete(self, name: str, namespace: str = "micro") -> None:
        await self.backend.delete(name, namespace)

    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        return await self.backend.read(name, namespace)

    @streamed()
    def logs(
        self, name: str, namespace: str = "micro", *, tail: int = 15, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        """A stream: end it with ``ray.cancel`` when it follows, or is not read to its end."""
        return self.backend.logs(name, namespace, tail=tail, follow=follow)

    @streamed()
    def progress(self, name: str, namespace: str = "micro") -> AsyncIterator[Progress]:
        """A stream: end it with ``ray.cancel`` when it is not read to its end."""
        return self.backend.progress(name, namespace)

    async def upload(self, archive: Chunks, namespace: str = "micro") -> str:
        """``archive``: bytes, or pieces that are bytes or object references, each taken when it is
        its turn."""
        return await self.backend.upload(pieces(archive, self.service), namespace)
