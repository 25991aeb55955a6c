"""Who stands at the door, in which namespace, and whether he may call what he asks for.

He is known by the access token of ``Authorization: Bearer ...`` or of the cookie ``micro-token``.
The namespace is the one that the header ``micro-namespace`` names, or the host (``tenant.DOMAIN``,
where the door has a domain), else that of his account, or of the door for nobody. Whoever names
another namespace than his own is let in by a rule of that namespace, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from micro_ray.auth import Identity, Resource
from micro_ray.auth.callers import bearer_of
from micro_ray.auth.checks import namespace_of
from micro_ray.auth.denials import Denials
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import Passes
from micro_ray.auth.stays import Stay
from micro_ray.context import AUTHORIZATION
from micro_ray.errors import Forbidden, Unauthorized
from micro_ray.router.table import home
from micro_ray.settings import PLATFORM

__all__ = ["COOKIE", "Visitor", "Visitors", "counted"]

COOKIE = "micro-token"
#: Headers that are remembered; more, and it begins anew.
REMEMBERED = 10_000


class Visitor(NamedTuple):
    """``identity`` is None for nobody."""

    identity: Identity | None
    namespace: str

    @property
    def account(self) -> str:
        """His id, with his namespace where that is another; blank for nobody."""
        if self.identity is None:
            return ""
        if self.identity.namespace == self.namespace:
            return self.identity.id
        return f"{self.identity.namespace}/{self.identity.id}"


def counted(visitor: Visitor, service: str) -> str:
    """The namespace that a call counts for: his, or, as nobody may name any, that of the
    service."""
    if visitor.identity is not None:
        return visitor.namespace
    return home(visitor.namespace, service)


class Visitors:
    """``guard`` decides (None: everybody may do everything, and nobody is known), ``passes`` are
    what visitors go on with, ``namespace`` is that of nobody. ``domain`` is that of hosts which
    name a namespace. ``informed`` is set once the guard has been told everything."""

    def __init__(
        self,
        guard: Guard | None = None,
        passes: Passes | None = None,
        *,
        namespace: str = "micro",
        domain: str = "",
        denials: Denials | None = None,
        informed: asyncio.Event | None = None,
    ) -> None:
        self.guard = guard
        self._informed = informed
        self.nobody = Visitor(None, namespace)
        self._passes = passes
        #: Visitors by their header, what the guard had learnt then, and until when it holds.
        self._known: dict[bytes, tuple[int, float, Visitor]] = {}
        self._suffix = f".{domain.lower().strip('.')}" if domain else ""
        self._denials = denials

    @property
    def is_ready(self) -> bool:
        """Whether rules have come, where there are any."""
        return self._informed is None or self._informed.is_set()

    async def ready(self) -> None:
        """Wait until they have."""
        if self._informed is not None:
            await self._informed.wait()

    def of(self, headers: Mapping[bytes, bytes]) -> Visitor:
        """Raises Unauthorized for a credential that is none, BadRequest for what is no
        namespace."""
        guard = self.guard
        if guard is None:
            return self.nobody
        given = headers.get(b"authorization", b"")
        plain = bool(given) and not self._suffix and b"micro-namespace" not in headers
        if plain:
            before = self._known.get(given)
            if before is not None and before[0] == guard.generation and before[1] > guard.now():
                return before[2]
        visitor = self._of(headers)
        if plain and visitor.identity is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[given] = (guard.generation, visitor.identity.expires, visitor)
        return visitor

    def _of(self, headers: Mapping[bytes, bytes]) -> Visitor:
        identity = self._identity(headers)
        asked = headers.get(b"micro-namespace", b"").decode("latin-1")
        asked = asked or self._of_host(headers)
        if not asked:
            return self.nobody if identity is None else Visitor(identity, identity.namespace)
        return Visitor(identity, namespace_of(asked))

    def _identity(self, headers: Mapping[bytes, bytes]) -> Identity | None:
        given = headers.get(b"authorization", b"")
        if given:
            token = bearer_of(given.decode("latin-1"))
        else:
            token = _cookie(headers.get(b"cookie", b""))
        if not token or self.guard is None:
            return None
        identity = self.guard.verify(token)
        if identity.key:
            raise Unauthorized("auth", "the token is of a process, which calls by its key")
        return identity

    def _of_host(self, headers: Mapping[bytes, bytes]) -> str:
        """The namespace that the host names."""
        if not self._suffix:
            return ""
        host = headers.get(b"host", b"").decode("latin-1").lower().partition(":")[0]
        name = host.removesuffix(self._suffix)
        return "" if name == host or "." in name else name

    def stranger(self, visitor: Visitor) -> bool:
        """Whether he is not of the namespace: nobody, or somebody of another one."""
        if self.guard is None:
            return False
        identity = visitor.identity
        return identity is None or not (
            identity.everywhere or identity.namespace == visitor.namespace
        )

    def limited_in(self, visitor: Visitor) -> str:
        """The namespace in which his calls are counted: where a stranger names one that has said
        nothing of strangers, that of the door, as each that is counted costs something."""
        if self.guard is None or not self.stranger(visitor):
            return visitor.namespace
        ruled = self.guard.ruled(visitor.namespace)
        return visitor.namespace if ruled else self.nobody.namespace

    def check(self, visitor: Visitor, resource: Resource, *, stream: bool = False) -> None:
        """Raises Unauthorized for nobody where somebody is needed, Forbidden for who may not,
        Unavailable before the rules are known. A ``stream`` of the platform's own services has no
        end, and is held by nobody through a door: with a few thousand the door would be full."""
        if self.guard is None:
            return
        try:
            self.guard.check(visitor.identity, resource, visitor.namespace)
            if stream and visitor.identity is None and resource.name.lower() in PLATFORM:
                what = f"{resource.name}:{resource.endpoint}"
                raise Unauthorized(resource.name, f"Unauthorized stream of {what}: log in")
        except (Unauthorized, Forbidden) as error:
            if self._denials is not None:
                where = self.limited_in(visitor)  # one that is only named need not exist
                self._denials.add(visitor.identity, resource, where, error.detail)
            raise

    def stay(self, visitor: Visitor, resource: Resource | None) -> Stay:
        """A stream of his, over when he may no more (``resource`` None: when he is no more who he
        was). Raises what :meth:`check` does when that is so already."""
        if self.guard is None:
            return Stay()
        return self.guard.stays.begin(visitor.identity, resource, visitor.namespace)

    def allows(self, visitor: Visitor, resource: Resource) -> bool:
        """Whether he may."""
        guard = self.guard
        return guard is None or guard.decide(visitor.identity, resource, visitor.namespace).allowed

    def along(
        self, visitor: Visitor, service: str, *, credential: bytes = b"", source: str = ""
    ) -> dict[str, str]:
        """The metadata with which he goes on to a service. Auth is told from where he comes
        (``source``), and his credential as he has given it, where nobody looks at it here: whoever
        gets a token may use it."""
        found: dict[str, str] = {}
        if self._passes is not None:
            place = home(visitor.namespace, service)
            found.update(self._passes.to(place, service, visitor.identity))
        found["micro-namespace"] = visitor.namespace
        if service == "auth":
            if credential and self.guard is None:
                found[AUTHORIZATION] = credential.decode("latin-1")
            if source:
                found["micro-source"] = source
        return found


def _cookie(header: bytes) -> str:
    """The token among the cookies (RFC 6265, 4.2)."""
    for pair in header.decode("latin-1").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value.strip('"')
    return ""
