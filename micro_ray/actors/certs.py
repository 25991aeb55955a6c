"""The actor of certs: ``ray.get_actor("certs", namespace="micro")``. Whoever has a handle owns the
cluster, so ``issue`` and ``ticket`` are here and nowhere else."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator

from micro_ray.actors.identity import needed
from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.certs import Certificate, Credential, Identity, Issued, Roots, Ticket
from micro_ray.certs.issuing import LocalCerts
from micro_ray.context import DEFAULT_NAMESPACE
from micro_ray.finding import Finding
from micro_ray.settings import LOOPBACK
from micro_ray.wire import certs as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.enrolment import Enrolled, everywhere
from micro_ray.wire.identity import Secured

__all__ = ["CertsActor"]


class CertsActor(Member):
    """The verbs of :class:`~micro_ray.certs.Certs`."""

    service = "certs"
    #: Members ask for theirs before they can be known; the others are for everybody on frames too.
    unasked = frozenset(("issue", "ticket", "sign", "roots", "watch"))

    async def identify(self) -> Secured | None:
        """Its own certificate it makes itself. Callers may come without one."""
        settings = self.settings
        self.backend = await self._stack.enter_async_context(
            LocalCerts(
                settings.state / "certs",
                ttl=settings.certs.ttl,
                ticket_ttl=settings.certs.ticket_ttl,
            )
        )
        if not needed(settings):
            return None
        who = Identity(namespace=DEFAULT_NAMESPACE, service=self.service, node=self.node)

        async def issue(request: bytes, _: Credential | None) -> Issued:
            return await self.backend.issue(request, who)

        loopback = everywhere(settings.network.tls)
        own = Enrolled(issue, self.backend.watch, loopback=loopback, optional=True)
        return (await self._stack.enter_async_context(own)).secured

    async def open(self) -> Endpoints:
        table = face.endpoints(self.backend)
        table.examine(self._frames)
        return table

    async def _frames(self) -> list[Finding]:
        """What frames between machines prove."""
        address, tls = self.settings.address or LOOPBACK, self.settings.network.tls
        if self.identity is not None:
            text = f"TCP on {address} is mutual TLS (network.tls {tls})"
            return [Finding(check="frames", good=True, text=text)]
        if address == LOOPBACK:
            text = "TCP is of this machine only, and plain"
            return [Finding(check="frames", good=True, text=text)]
        text = f"TCP on {address} is plain: whoever reaches it may call; set network.tls to auto"
        return [Finding(check="frames", good=False, text=text)]

    async def issue(self, request: bytes, identity: Identity, *, ttl: float = 0.0) -> Issued:
        return await self.backend.issue(request, identity, ttl=ttl)

    async def ticket(self, identity: Identity) -> Ticket:
        return await self.backend.ticket(identity)

    async def sign(
        self, request: bytes, *, ticket: str = "", certificate: bytes = b"", proof: bytes = b""
    ) -> Issued:
        return await self.backend.sign(request, ticket=ticket, certificate=certificate, proof=proof)

    async def roots(self) -> Roots:
        return await self.backend.roots()

    async def list(self) -> builtins.list[Certificate]:
        return await self.backend.list()

    async def renew(self) -> Roots:
        return await self.backend.renew()

    @streamed()
    def watch(self) -> AsyncIterator[Roots]:
        """A stream, for ever: end it with ``ray.cancel``."""
        return self.backend.watch()
