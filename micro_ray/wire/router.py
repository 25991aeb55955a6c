"""The router's face on frames, and the follower that keeps a table up to date from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from micro_ray.context import current
from micro_ray.errors import MicroError, Unauthorized
from micro_ray.network import Dialer, Stream
from micro_ray.router import Delta, Entry, Filter, Route
from micro_ray.router.parts import join, seen, split
from micro_ray.router.table import Table
from micro_ray.wire.remote import Direct, decode, encode

if TYPE_CHECKING:  # callers, who only follow, need not load what serves
    from micro_ray.router.derive import Router
    from micro_ray.wire.endpoints import Endpoints

__all__ = ["Follower", "endpoints"]

log = logging.getLogger(__name__)

#: Seconds between attempts when no router answers: first, and at most.
BACKOFF = (0.01, 1.0)
#: Seconds to stay with a router that reaches no registry, when none of the others did.
PATIENCE = 10.0


def endpoints(router: Router) -> Endpoints:
    """Service ``router``: lookups, the tables, and the watch that doors and clients hold."""
    from micro_ray.wire.endpoints import Endpoints

    async def lookup(
        service: str,
        namespace: str = "",
        version: str = "",
        address: str = "",
        protocol: str = "",
        network: str = "",
        link: str = "",
        host: str = "",
        node: str = "",
    ) -> list[Route]:
        """The routes of a service."""
        filter = Filter(
            version=version,
            address=address,
            protocol=protocol,
            network=network,
            link=link,
            host=host,
            node=node,
        )
        return list(router.table.lookup(current().within(namespace), service, filter))

    async def read(service: str = "", namespace: str = "") -> list[Route]:
        """The whole table, or one service's routes."""
        return router.table.routes(current().within(namespace), service)

    async def entries(namespace: str = "") -> list[Entry]:
        """The services that callers may know, with their endpoints."""
        return router.table.entries(current().within(namespace))

    async def watch() -> AsyncIterator[Delta]:
        """The full table as far as the caller may see it, then its changes; large ones in parts."""
        whose = current().whose
        async with contextlib.aclosing(router.watch()) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                for part in split(delta if whose is None else seen(delta, whose)):
                    yield part

    face = Endpoints("router")
    face.add("Router.Lookup", lookup)
    face.add("Router.Watch", watch)
    face.add("Table.Read", read)
    face.add("Table.Entries", entries)
    return face


class Follower:
    """An ``async with`` that keeps ``table`` as the first router that answers has it; one that
    follows a registry is preferred to one that does not.

    It never raises: with no router in reach the table stays as it is, marked stale, and attempts go
    on. ``ready`` is set once a table that followed a registry has come.
    """

    def __init__(self, dialer: Dialer, addresses: Sequence[str], table: Table) -> None:
        self._dialer = dialer
        self._addresses = list(addresses)
        self._table = table
        self._task: asyncio.Task[None] | None = None
        #: Stale deltas in a row.
        self._stale = 0
        #: Why the last router that answered would not tell: who follows is not let in.
        self.refused: Unauthorized | None = None
        self.ready = asyncio.Event()

    async def __aenter__(self) -> Follower:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        addresses = random.sample(self._addresses, len(self._addresses))
        pause = BACKOFF[0]
        while True:
            for address in addresses:
                direct = Direct(self._dialer, [address], "router")
                try:
                    await self._watch(direct)
                except MicroError as error:
                    self.refused = error if isinstance(error, Unauthorized) else None
                    log.debug("router %s: %s", address, error)
                except Exception:
                    log.exception("router %s", address)
                finally:
                    await direct.close()
                if self._table.revision and not self._table.stale:
                    pause = BACKOFF[0]
                self._table.mark_stale()
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF[1])

    async def _watch(self, direct: Direct) -> None:
        """Follow one router until it ends, sends what does not follow, or has been out of reach of
        the registry for longer than another may be."""
        async with await direct.open("Router.Watch") as stream:
            await stream.send(encode({}))
            await stream.end()
            parts: list[Delta] = []
            patience: float | None = None
            while (message := await self._receive(stream, patience)) is not None:
                parts.append(decode(message, Delta, "router"))
                if parts[-1].more:
                    continue
                delta, parts = join(parts), []
                if delta.full and delta.stale and len(delta.routes) < self._table.size:
                    # A router that has just started knows less than this table does.
                    log.debug("a router without a registry has nothing to tell")
                elif not self._table.apply(delta):
                    return  # not ours to follow: connect again for a full table
                if delta.stale:
                    self._stale += 1
                    patience = self._patience()
                else:
                    self._stale, patience = 0, None
                    self.ready.set()

    async def _receive(self, stream: Stream, patience: float | None) -> bytes | None:
        try:
            async with asyncio.timeout(patience):
                return await stream.receive()
        except TimeoutError:
            return None

    def _patience(self) -> float | None:
        """How long to stay with a router that reaches no registry: not at all while there are
        others that may, for a while when none of them does."""
        others = len(self._addresses) - 1
        if not others:
            return None
        return PATIENCE if self._stale > others else 0.0
