"""The identity of this process: had once, then kept fresh and in step with whom to trust."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from micro_ray.certs import Credential, Identity, Issued, Roots
from micro_ray.errors import BadRequest, MicroError
from micro_ray.settings import Bootstrap
from micro_ray.wire.address import Address
from micro_ray.wire.certs import RemoteCerts
from micro_ray.wire.closing import closing
from micro_ray.wire.identity import Secured

__all__ = ["Enrolled", "OnDemand", "covers", "enrolled", "everywhere"]

log = logging.getLogger(__name__)

#: Seconds within which the processes renew when whom to trust has changed, each at its own time.
SPREAD = 2.0
#: Seconds between attempts to watch: first, and at most.
BACKOFF = (0.1, 5.0)

#: Gives a certificate for a signing request and the credential that one has (None at first).
Issue = Callable[[bytes, Credential | None], Awaitable[Issued]]
Watch = Callable[[], AsyncIterator[Roots]]


def everywhere(tls: str) -> bool:
    """Whether TCP within this machine is TLS too, as the setting ``network.tls`` says."""
    return tls == "always"


def covers(tls: str, address: str) -> bool:
    """Whether frames that listen on an IP address are TLS, as the setting says."""
    return tls == "always" or (tls == "auto" and not Address(host=address).is_local)


class Enrolled:
    """An ``async with``: entered, ``secured`` is there, to listen and to dial with; it is renewed
    before it ends, and whenever whom to trust, or who signs, has changed. Both fail quietly: what
    there is stays, and attempts go on. ``examine`` is a health check.

    ``loopback`` and ``optional`` are as in :class:`Secured`, ``has`` is what an earlier one had.
    Entering raises what ``issue`` raises,
    and TimeoutError.
    """

    def __init__(
        self,
        issue: Issue,
        watch: Watch,
        *,
        loopback: bool = True,
        optional: bool = False,
        spread: float = SPREAD,
        has: Credential | None = None,
    ) -> None:
        # Late, as it loads what makes keys: a command that needs none does not wait for it.
        from micro_ray.certs.renewal import Renewal

        self._issue = issue
        self._watch = watch
        self._loopback = loopback
        self._optional = optional
        self._spread = spread
        #: What this process has: the last that it was issued, at first that of an earlier life.
        self.credential = has
        self._secured: Secured | None = None
        self._renewal = Renewal(self._ask, use=self._use)
        self._task: asyncio.Task[None] | None = None

    @property
    def secured(self) -> Secured:
        assert self._secured is not None, "not entered"
        return self._secured

    @property
    def renewed(self) -> int:
        """How often it was."""
        return self._renewal.renewed

    async def examine(self) -> None:
        """Raises Unavailable when it could not be renewed in time."""
        await self._renewal.examine()

    def hurry(self) -> None:
        """Renew now."""
        self._renewal.hurry()

    async def __aenter__(self) -> Enrolled:
        await self._renewal.__aenter__()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._renewal.__aexit__(*exc)

    async def _ask(self, request: bytes) -> Issued:
        return await self._issue(request, self.credential)

    def _use(self, credential: Credential) -> None:
        if self._secured is None:
            self._secured = Secured(credential, loopback=self._loopback, optional=self._optional)
        else:
            self._secured.use(credential)
        self.credential = credential

    async def _follow(self) -> None:
        """Renew when the roots are others than those that were seen last."""
        pause = BACKOFF[0]
        seen: Roots | None = None
        while True:
            try:
                async with closing(self._watch()) as changes:
                    async for roots in changes:
                        pause = BACKOFF[0]
                        assert self.credential is not None
                        known = self.credential.issued.trusted == roots.trusted
                        if not known or (seen is not None and seen != roots):
                            await asyncio.sleep(self._spread * random.random())
                            self._renewal.hurry()
                        seen = roots
            except (MicroError, OSError, TimeoutError) as error:
                log.debug("whom to trust is not followed: %s", error)
            except Exception:
                log.exception("whom to trust is not followed")
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF[1])


@asynccontextmanager
async def enrolled(
    boot: Bootstrap,
    identity: Identity | None,
    *,
    first: Issue | None = None,
    has: Credential | None = None,
) -> AsyncIterator[Enrolled]:
    """The identity of this process from the authority at ``boot.certs``: the first certificate by
    ``first``, else by the ticket of ``boot``, else, on the authority's own machine, for the asking
    (without an identity it is that of a client). It is renewed by the one that it has.

    Raises BadRequest for the ticket of another, Forbidden when the authority refuses, Unavailable
    or TimeoutError when none answers.
    """
    from micro_ray.certs.keys import prove

    loopback = everywhere(boot.network.tls)
    certs = RemoteCerts(boot.certs, trusted=boot.roots.encode(), loopback=loopback)

    async def issue(request: bytes, has: Credential | None) -> Issued:
        if first is not None:
            issued = await first(request, has)
        elif has is not None:
            proof = prove(has.key, request)
            shown = has.issued.certificate
            issued = await certs.sign(request, certificate=shown, proof=proof)
        elif boot.ticket:
            issued = await certs.sign(request, ticket=boot.ticket)
        elif identity is not None:
            issued = await certs.issue(request, identity)
        else:
            issued = await certs.client(request)
        if identity is not None and issued.identity != identity.uri:
            raise BadRequest(
                "certs",
                f"the ticket is for {issued.identity} and this is {identity.uri}: a service that "
                "other machines call is named as its workload is",
            )
        certs.trust(issued.trusted)
        return issued

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(certs.close)
        yield await stack.enter_async_context(
            Enrolled(issue, certs.watch, loopback=loopback, has=has)
        )


class OnDemand:
    """The identity of a process that only calls: had when it first dials where TLS is."""

    def __init__(self, boot: Bootstrap) -> None:
        self._boot = boot
        self._loopback = everywhere(boot.network.tls)
        self._stack = contextlib.AsyncExitStack()
        self._enrolled: Enrolled | None = None
        self._asking = asyncio.Lock()

    def covers(self, where: Address) -> bool:
        """Whether TCP there is TLS."""
        return self._loopback or not where.is_local

    async def context(self) -> ssl.SSLContext:
        """For one connection. Raises as :func:`enrolled`."""
        async with self._asking:
            if self._enrolled is None:
                opening = enrolled(self._boot, None)
                self._enrolled = await self._stack.enter_async_context(opening)
        return await self._enrolled.secured.context()

    async def close(self) -> None:
        await self._stack.aclose()
