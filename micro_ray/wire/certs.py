"""The face of certs on frames, and the way to it for a process that has no certificate yet."""

from __future__ import annotations

import builtins
import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from micro_ray.certs import Certificate, Certs, Identity, Issued, Roots
from micro_ray.context import current
from micro_ray.errors import Forbidden
from micro_ray.limits.gate import ADMITTED
from micro_ray.settings import PLATFORM
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.identity import Trusting
from micro_ray.wire.protocol import Limits
from micro_ray.wire.remote import Direct, decode, encode

if TYPE_CHECKING:  # callers need not load what serves
    from micro_ray.wire.endpoints import Endpoints
    from micro_ray.wire.server import Incoming

__all__ = ["NAME", "RemoteCerts", "endpoints"]

NAME = "certs"
#: What is for those who have proved nothing yet.
OPEN = frozenset({"certs.sign", "certs.roots", "certs.watch", "debug.health"})
#: Seconds that a certificate of a command lives which has not said who it is.
CLIENT_TTL = 600.0


class _Face:
    """The endpoints as methods. ``space`` is the namespace of the platform's own services."""

    def __init__(self, certs: Certs, space: str) -> None:
        self._certs = certs
        self._space = space

    async def sign(
        self,
        request: bytes,
        ticket: str = "",
        certificate: bytes = b"",
        proof: bytes = b"",
        identity: str = "",
    ) -> Issued:
        """A certificate for a signing request: with a ticket, or with the certificate that one has
        and the signature of the request by its key. Whoever could open the socket on the server's
        machine says who it is for."""
        if ticket or certificate:
            return await self._certs.sign(
                request, ticket=ticket, certificate=certificate, proof=proof
            )
        context = current()
        # A door comes by the socket too, for whoever stands before it.
        relayed = ADMITTED in context.metadata or (context.reach is not None and context.trusted)
        if context.peer != "unix" or relayed:
            raise Forbidden(NAME, "no ticket and no certificate: who are you?")
        if not identity:
            who = Identity(namespace=self._space, service="client", node=os.urandom(8).hex())
            return await self._certs.issue(request, who, ttl=CLIENT_TTL)
        return await self._certs.issue(request, self._allowed(identity))

    def _allowed(self, uri: str) -> Identity:
        """Raises Forbidden for one of the platform's own: they ask elsewhere."""
        who = Identity.parse(uri)
        if who.service in PLATFORM:
            raise Forbidden(NAME, f"{who.service} is a service of the platform")
        return who

    async def roots(self) -> Roots:
        """Whom to trust."""
        return await self._certs.roots()

    async def list(self) -> builtins.list[Certificate]:
        """The certificates that are alive. For the platform."""
        current().within("*")
        return await self._certs.list()

    async def renew(self) -> Roots:
        """Begin to replace the authority's key. For the platform."""
        current().within("*")
        return await self._certs.renew()

    async def watch(self) -> AsyncIterator[Roots]:
        """Whom to trust, now and whenever it changes."""
        async for roots in self._certs.watch():
            yield roots


def endpoints(certs: Certs, space: str = "micro") -> Endpoints:
    """Service ``certs``."""
    from micro_ray.wire.endpoints import Endpoints

    face, table = _Face(certs, space), Endpoints(NAME)
    for verb in ("sign", "roots", "list", "renew", "watch"):
        table.add(f"Certs.{verb.title()}", getattr(face, verb))
    return _guarded(table)


def _guarded(table: Endpoints) -> Endpoints:
    """Callers may come without a certificate here, over TCP: they get one, and nothing else."""
    serve = table.handler

    async def handler(incoming: Incoming) -> None:
        if not incoming.proved and incoming.head.endpoint.lower() not in OPEN:
            raise Forbidden(NAME, "over TCP this is for those who have a certificate")
        await serve(incoming)

    table.handler = handler  # type: ignore[method-assign]
    return table


class RemoteCerts(Certs):
    """The interface over frames to the first address that answers, who must show a certificate that
    one of ``trusted`` (PEM) has signed."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        trusted: bytes = b"",
        loopback: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self._trusting = Trusting(trusted, loopback=loopback)
        self._direct = Direct(WireDialer(limits=limits, identity=self._trusting), addresses, NAME)

    def trust(self, trusted: bytes) -> None:
        """From now on these."""
        self._trusting.use(trusted)

    async def issue(self, request: bytes, identity: Identity, *, ttl: float = 0.0) -> Issued:
        """On this machine alone, by the socket there; the lifetime is the settings'."""
        return await self._sign({"request": request, "identity": identity.uri})

    async def client(self, request: bytes) -> Issued:
        """A certificate for a command that serves nothing; on this machine alone."""
        return await self._sign({"request": request})

    async def ticket(self, identity: Identity) -> NoReturn:
        raise Forbidden(NAME, "tickets are made by the runtime, on the handle")

    async def sign(
        self, request: bytes, *, ticket: str = "", certificate: bytes = b"", proof: bytes = b""
    ) -> Issued:
        asked = {"ticket": ticket, "certificate": certificate, "proof": proof}
        return await self._sign({"request": request, **asked})

    async def _sign(self, request: dict[str, Any]) -> Issued:
        return await self._direct.call("Certs.Sign", request, Issued)

    async def roots(self) -> Roots:
        return await self._direct.call("Certs.Roots", {}, Roots)

    async def list(self) -> builtins.list[Certificate]:
        return await self._direct.call("Certs.List", {}, builtins.list[Certificate])

    async def renew(self) -> Roots:
        return await self._direct.call("Certs.Renew", {}, Roots)

    async def watch(self) -> AsyncIterator[Roots]:
        async with await self._direct.open("Certs.Watch") as stream:
            await stream.send(encode({}))
            await stream.end()
            async for message in stream:
                yield decode(message, Roots, NAME)

    async def close(self) -> None:
        await self._direct.close()
