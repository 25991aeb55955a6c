"""What namespaces keep, counted now and then, so that there may be so much and no more.

What a namespace keeps is counted by its backend, not with each write: between two counts this
process adds up what it writes, as if nothing were replaced or removed. So it never believes in less
than its own writes have made; before it refuses one it counts anew, at most once a second. What
other processes write meanwhile it learns with the next count: **the quota may be exceeded by what
they write in** :data:`EVERY` **seconds** (or twenty times the seconds that a count takes, if that
is more). Counts are made beside the writes, but for the first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType

from micro_ray.errors import TooLarge

__all__ = ["AGAIN", "EVERY", "Amounts", "Taken", "Tallies"]

log = logging.getLogger(__name__)

#: Seconds between two counts of a namespace that is being written to, and between two when it is
#: full.
EVERY, AGAIN = 5.0, 1.0
#: Part of the time that is spent on counting, at most.
SHARE = 0.05

#: So much of each thing that is counted, in the order of the names.
Amounts = tuple[int, ...]


@dataclass(slots=True)
class _Tally:
    """What a namespace keeps, as far as is known: counted ``at``, in ``took`` seconds. ``new`` is
    what a count that is under way may not have seen: writes that were being made when it began, and
    those since; ``open`` is what is being written."""

    kept: Amounts
    new: Amounts
    open: Amounts
    at: float = float("-inf")
    took: float = 0.0
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Taken:
    """Room for what is being written; a ``with`` around the writing, which may take more."""

    __slots__ = ("_amounts", "_tally")

    def __init__(self, tally: _Tally, amounts: Amounts) -> None:
        self._tally = tally
        self._amounts = amounts
        tally.open = _sum(tally.open, amounts)

    def grow(self, amounts: Amounts) -> None:
        self._amounts = _sum(self._amounts, amounts)
        self._tally.open = _sum(self._tally.open, amounts)

    def __enter__(self) -> Taken:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tally.open = _sum(self._tally.open, self._amounts, -1)


class Tallies:
    """``noun`` keeps what has ``names``; ``count`` gives how much of each a namespace has;
    ``remedy`` says what makes room. :meth:`close` ends the counts that are under way."""

    def __init__(
        self,
        noun: str,
        names: tuple[str, ...],
        count: Callable[[str], Awaitable[Amounts]],
        *,
        where: str,
        remedy: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._noun = noun
        self._names = names
        self._counted_by = count
        self._where = where
        self._remedy = remedy
        self._clock = clock
        self._tallies: dict[str, _Tally] = {}
        self._counts: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many namespaces are counted."""
        return len(self._tallies)

    async def close(self) -> None:
        """End the counts."""
        for task in self._counts:
            task.cancel()
        await asyncio.gather(*self._counts, return_exceptions=True)

    async def take(
        self, namespace: str, most: Amounts, more: Amounts, into: Taken | None = None
    ) -> Taken:
        """Room for ``more`` where there may be ``most`` (0: any amount), ``into`` what was taken
        before for the same writing. Raises TooLarge that names the quota, and what the backend
        raises when it is counted."""
        none = (0,) * len(self._names)
        tally = self._tallies.setdefault(namespace, _Tally(none, none, none))
        period = max(EVERY, tally.took / SHARE)
        if tally.at == float("-inf"):
            await self._count(namespace, tally, period)
        elif self._clock() >= tally.at + period and not tally.counting.locked():
            task = asyncio.create_task(self._count(namespace, tally, period))
            self._counts.add(task)
            task.add_done_callback(self._counted)
        if max(more) > 0 and self._over(most, tally, more):
            await self._count(namespace, tally, max(AGAIN, tally.took / SHARE))
            over = self._over(most, tally, more)
            if over:
                raise TooLarge(
                    self._noun,
                    f"namespace {namespace} may keep {over}; {self._remedy}, or have its quota "
                    f"raised (config limits.{self._noun})",
                )
        tally.kept = _sum(tally.kept, more)
        tally.new = _sum(tally.new, more)
        if into is None:
            return Taken(tally, more)
        into.grow(more)
        return into

    def _over(self, most: Amounts, tally: _Tally, more: Amounts) -> str:
        """Which part of a quota there is no room in, in words; blank when there is."""
        for name, limit, kept, added in zip(self._names, most, tally.kept, more, strict=True):
            if limit and added > 0 and kept + added > limit:
                return f"{limit} {name} {self._where} and keeps {kept}"
        return ""

    def _counted(self, task: asyncio.Task[None]) -> None:
        self._counts.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("what is kept could not be counted: %s", task.exception())

    async def _count(self, namespace: str, tally: _Tally, period: float) -> None:
        """Count unless somebody has, within the period."""
        async with tally.counting:
            begun = self._clock()
            if begun < tally.at + period:
                return
            tally.new = tally.open
            found = await self._counted_by(namespace)
            tally.kept = _sum(found, tally.new)
            tally.at, tally.took = begun, self._clock() - begun


def _sum(one: Amounts, other: Amounts, sign: int = 1) -> Amounts:
    return tuple(a + sign * b for a, b in zip(one, other, strict=True))
