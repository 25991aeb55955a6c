"""The service over the local authority: who may have which certificate, and a change of the
authority's key that nobody notices."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from micro_ray.certs import Certificate, Certs, Identity, Issued, Roots, Ticket
from micro_ray.certs.book import Book, Entry
from micro_ray.certs.local import LocalAuthority, public_key
from micro_ray.certs.tickets import Tickets
from micro_ray.errors import Forbidden, MicroError
from micro_ray.finding import Finding

__all__ = ["LocalCerts"]

log = logging.getLogger(__name__)

#: Seconds between looks whether a change of keys can go on.
LOOK = 1.0
#: Seconds that a process has to take up what it was answered, before others rely on it.
SETTLE = 3.0
#: Seconds before the end of the authority's key at which a warning is due.
SOON = 30 * 86_400.0


class LocalCerts(Certs):
    """An ``async with`` over the authority of a folder. One process at a time; another may follow
    after a kill: all that was answered is in the folder."""

    def __init__(
        self,
        folder: Path,
        *,
        ttl: float = 3600.0,
        ticket_ttl: float = 300.0,
        settle: float = SETTLE,
        look: float = LOOK,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._authority = LocalAuthority(folder, now=now)
        self._tickets = Tickets(folder / "tickets.key", ttl=ticket_ttl, now=now)
        self._book = Book(folder / "issued.log", now=now)
        self._ttl = ttl
        self._now = now
        self._settle = settle
        self._look = look
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        #: Set while the authority's key is being changed.
        self._under_way = asyncio.Event()
        #: When somebody last learnt of the next root.
        self._taught = 0.0
        #: How often it was looked whether a change can go on.
        self.looks = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LocalCerts:
        roots = await self._authority.roots()  # makes the folder
        await asyncio.to_thread(self._book.load)
        if len(roots.roots) > 1:  # an earlier life has begun it
            self._under_way.set()
        self._taught = time.monotonic()
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def issue(self, request: bytes, identity: Identity, *, ttl: float = 0.0) -> Issued:
        async with self._turn:
            return await self._issue(request, identity, min(ttl, self._ttl) or self._ttl)

    async def ticket(self, identity: Identity) -> Ticket:
        secret, expires = await asyncio.to_thread(self._tickets.make, identity)
        trusted = await self._authority.trusted()
        return Ticket(secret=secret, trusted=trusted, expires=expires)

    async def sign(
        self, request: bytes, *, ticket: str = "", certificate: bytes = b"", proof: bytes = b""
    ) -> Issued:
        if not ticket:
            identity = await self._authority.holder(request, certificate, proof)
            return await self.issue(request, identity)
        claim = await asyncio.to_thread(self._tickets.read, ticket)
        async with self._turn:
            used = self._book.used(claim.id)
            if used is not None and used.key != _digest(request):
                raise Forbidden("certs", f"the ticket of {claim.identity.node} was used already")
            return await self._issue(
                request, claim.identity, self._ttl, ticket=claim.id, until=claim.expires
            )

    async def roots(self) -> Roots:
        return await self._authority.roots()

    async def list(self) -> builtins.list[Certificate]:
        found = []
        for entry in self._book.live:
            who = Identity.parse(entry.identity)
            found.append(
                Certificate(
                    namespace=who.namespace,
                    service=who.service,
                    node=who.node,
                    begins=entry.begins,
                    ends=entry.ends,
                    root=entry.root,
                )
            )
        return found

    async def renew(self) -> Roots:
        async with self._turn:
            roots = await self._authority.roots()
            if {"next", "former"} & {root.state for root in roots.roots}:
                return roots
            await self._authority.prepare()
            self._taught = time.monotonic()
            self._under_way.set()
            self._tell()
            log.info("the authority has a new key; it signs when everybody trusts it")
            return await self._authority.roots()

    async def watch(self) -> AsyncIterator[Roots]:
        last = None
        while True:
            changed = self._changed
            roots = await self._authority.roots()
            if roots != last:
                last = roots
                yield roots
            await changed.wait()

    async def examine(self) -> builtins.list[Finding]:
        """How long the authority's key lives, and how many trust it."""
        try:
            roots = await self._authority.roots()
        except MicroError as error:
            return [Finding(check="certs", good=False, text=error.detail)]
        (signs,) = (root for root in roots.roots if root.state == "signs")
        days = (signs.ends - self._now()) / 86_400
        text = f"the authority's key lives for {days:.0f} days; {len(self._book.live)} certificates"
        if days * 86_400 < SOON:
            return [Finding(check="certs", good=False, text=f"{text}; `micro certs renew`")]
        return [Finding(check="certs", good=True, text=text)]

    async def _issue(
        self, request: bytes, identity: Identity, ttl: float, ticket: str = "", until: float = 0.0
    ) -> Issued:
        """Under the turn: what is entered must be in the order in which it was signed."""
        self._book.check_room()
        roots = await self._authority.roots()
        issued = await self._authority.issue(request, identity, ttl=ttl)
        entry = Entry(
            identity=identity.uri,
            begins=issued.begins,
            ends=issued.ends,
            root=next(root.id for root in roots.roots if root.state == "signs"),
            knows=tuple(root.id for root in roots.roots),
            key=_digest(request),
            ticket=ticket,
            until=max(until, issued.ends),
        )
        last = self._book.last(identity.uri)
        if last is None or not {*entry.knows} <= {*last.knows}:
            self._taught = time.monotonic()
        await asyncio.to_thread(self._book.enter, entry)
        return issued

    async def _keep(self) -> None:
        while True:
            await self._under_way.wait()
            await asyncio.sleep(self._look)
            try:
                async with self._turn:
                    await self._go_on()
                self.looks += 1
            except MicroError as error:
                log.warning("the change of the authority's key waits: %s", error)
            except Exception:
                log.exception("the change of the authority's key waits")

    async def _go_on(self) -> None:
        """The next step of a change of keys, when it can do no harm."""
        roots = (await self._authority.roots()).roots
        following = {root.id for root in roots if root.state == "next"}
        former = {root.id for root in roots if root.state == "former"}
        if not following and not former:
            self._under_way.clear()
        if following:
            settled = time.monotonic() - self._taught >= self._settle
            if settled and all(following <= {*entry.knows} for entry in self._book.live):
                await self._authority.rotate()
                self._tell()
                log.info("the authority signs with its new key")
        elif former and not any(entry.root in former for entry in self._book.live):
            await self._authority.retire()
            self._tell()
            log.info("the authority's former key is trusted no longer")

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _digest(request: bytes) -> str:
    """Of the public key of a signing request. Raises BadRequest."""
    numbers = public_key(request).public_numbers()
    return hashlib.sha256(f"{numbers.x}:{numbers.y}".encode()).hexdigest()
