"""The face of limits on frames: the rules, their use, and the line that a door holds to borrow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from micro_ray.context import current
from micro_ray.errors import BadRequest, TooManyRequests
from micro_ray.limits import Limits, Rule, Standing
from micro_ray.limits.ledger import Ask, Grant, Ledger
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.own import of_whole

__all__ = ["NAME", "Granted", "Lender", "Said", "endpoints"]

NAME = "limits"
#: Asks in one message, doors at once, and grants that wait for a door that does not read.
MAX_ASKS, MAX_DOORS, MAX_WAITING = 1000, 10_000, 100_000
#: Seconds between looking for limits that can be forgotten.
SWEEP = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a door sends."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What a door is sent; ``doors`` are attached."""

    doors: int
    grants: tuple[Grant, ...]


class Lender:
    """The lines of the doors to one ledger, all on one loop."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._lines: dict[int, asyncio.Queue[list[Grant]]] = {}
        self._swept = 0.0

    async def lend(self, messages: AsyncIterator[Said]) -> AsyncIterator[Granted]:
        """A door's line: what it says comes in, what it gets goes out. Ends with it. Who is no
        process of the platform borrows within its own namespace."""
        if len(self._lines) >= MAX_DOORS:
            raise TooManyRequests(NAME, f"{MAX_DOORS} doors are attached here", 1.0)
        door = self.ledger.attach()
        waiting: asyncio.Queue[list[Grant]] = asyncio.Queue(MAX_WAITING)
        self._lines[door] = waiting
        listening = asyncio.create_task(self._listen(door, messages))
        try:
            while True:
                getting = asyncio.ensure_future(waiting.get())
                try:
                    await asyncio.wait((getting, listening), return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        await listening  # what went wrong there, or the end
                        return
                    grants = getting.result()
                finally:
                    getting.cancel()
                yield Granted(doors=self.ledger.doors, grants=tuple(grants))
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            del self._lines[door]
            self._tell(self.ledger.detach(door, time.monotonic()))

    async def _listen(self, door: int, messages: AsyncIterator[Said]) -> None:
        context = current()
        async for said in messages:
            if len(said.asks) > MAX_ASKS:
                raise BadRequest(NAME, f"over {MAX_ASKS} asks in one message")
            if context.whose is not None:
                for ask in said.asks:
                    context.within(ask.place.namespace)
            now = time.monotonic()
            self._tell(self.ledger.ask(door, said.asks, now))
            if now > self._swept + SWEEP:
                self._swept = now
                self.ledger.sweep(now)

    def _tell(self, told: dict[int, list[Grant]]) -> None:
        for door, grants in told.items():
            line = self._lines.get(door)
            if line is not None:
                # A door that has not read so many is no more: its line will end.
                with contextlib.suppress(asyncio.QueueFull):
                    line.put_nowait(grants)


class _Face:
    """The endpoints as methods; the namespace is the caller's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def list(self) -> Standing:
        """The limits of the namespace."""
        return await self._limits.list(namespace=current().namespace)

    async def set(
        self,
        kind: str,
        name: str = "",
        rate: float | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        by: str = "",
    ) -> Rule:
        """Set the limit of a namespace, account, service or route (0 removes a number)."""
        of_whole(kind)
        return await self._limits.set(
            kind,
            name,
            rate=rate,
            burst=burst,
            concurrency=concurrency,
            by=current().caller or by,
            namespace=current().namespace,
        )

    async def unset(self, kind: str, name: str = "", by: str = "") -> None:
        """Remove a limit."""
        of_whole(kind)
        who = current().caller or by
        await self._limits.unset(kind, name, by=who, namespace=current().namespace)

    async def usage(self) -> dict[str, Any]:
        """The limits that are being used."""
        return {"limits": await self._limits.usage(namespace=current().namespace)}


def endpoints(limits: Limits, lender: Lender | None = None) -> Endpoints:
    """Service ``limits``; ``lender`` has the ledger that the limits' usage is of."""
    face, table = _Face(limits), Endpoints(NAME)
    for name in ("list", "set", "unset", "usage"):
        table.add(f"Limits.{name.title()}", getattr(face, name))
    return table.add("Limits.Lend", (lender or Lender(Ledger())).lend)
