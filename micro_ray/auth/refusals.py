"""What was refused to somebody who is known is entered among what was done: so much of it a second
for each namespace, the rest as a count, so that nobody fills the record with what he may not do."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from micro_ray.auth import DEFAULT, Caller, Identity, Rule
from micro_ray.auth.records import Records
from micro_ray.errors import Forbidden, MicroError, Unauthorized

__all__ = ["Refusals", "Room", "refusing"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Entries a second of each namespace.
MOST = 5
#: Kinds that are told apart; more, and it begins anew.
KINDS = 10_000


class Room:
    """So many entries a second of each kind; the others are counted."""

    def __init__(self, most: int, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._clock = clock
        #: The second that is counted, entries in it, and those that were left out so far.
        self._counts: dict[str, tuple[int, int, int]] = {}

    def take(self, kind: str, number: int = 1) -> int | None:
        """How many were left out before one that may be entered now; None when it may not, and
        counts for so many."""
        second = int(self._clock())
        if len(self._counts) >= KINDS:
            self._counts.clear()
        at, count, left = self._counts.get(kind, (second, 0, 0))
        if at != second:
            at, count = second, 0
        if count >= self._most:
            self._counts[kind] = at, count, left + number
            return None
        self._counts[kind] = at, count + 1, 0
        return left


class Refusals:
    """Entered in the namespace of who was refused: another's record is not his to write to, and
    one that he only names need not exist."""

    def __init__(self, records: Records, clock: Callable[[], float] = time.time) -> None:
        self._records = records
        self._room = Room(MOST, clock)

    async def note(self, action: str, by: Identity, namespace: str, subject: str, why: str) -> None:
        """Enter it, if it may be; a store that is away loses it, not the answer."""
        left = self._room.take(by.namespace)
        if left is None:
            return
        detail: dict[str, Any] = {"why": why}
        if namespace != by.namespace:
            detail["namespace"] = namespace[:253]
        if left:
            detail["left_out"] = left
        entry = self._records.audit(
            action, by, by.namespace, subject[:253], allowed=False, detail=detail
        )
        try:
            await self._records.write(entry)
        except MicroError as error:
            log.warning("a refusal of %s to %s/%s: %s", action, by.namespace, by.id, error)


class Refuser(Protocol):
    """Who has verbs that are refused."""

    async def refused(
        self, action: str, by: Caller, namespace: str, subject: str, error: MicroError
    ) -> None: ...


def refusing(
    action: str,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """A verb of a :class:`Refuser` that tells him what it refuses."""

    def decorate(verb: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(verb)
        async def tried(*args: P.args, **options: P.kwargs) -> T:
            try:
                return await verb(*args, **options)
            except (Forbidden, Unauthorized) as error:
                refuser: Any = args[0]
                about = args[1] if len(args) > 1 else options.get("id", options.get("account", ""))
                subject = about.id if isinstance(about, Rule) else str(about)
                namespace = str(options.get("namespace", DEFAULT))
                await refuser.refused(action, options.get("by"), namespace, subject, error)
                raise

        return tried

    return decorate
