"""What guards follow: one task per process reads it from the store, and all followers take it from
there."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from micro_ray.auth import Identity, Key, Revocation, Rule, Update
from micro_ray.auth.fanout import Fanout
from micro_ray.auth.guard import Guard
from micro_ray.auth.mark import Marks
from micro_ray.auth.records import KEYS, REVOKED, RULE, SHARED, Records, Ring, encoded, parted
from micro_ray.errors import Conflict, InternalError, MicroError
from micro_ray.store import Action, Change

__all__ = ["Feed"]

log = logging.getLogger(__name__)

#: Seconds between attempts to read the store: first, and at most.
BACKOFF = (0.02, 0.25)
#: Seconds that the store is read on when nobody follows: when a cache dies, all its followers come
#: at once.
LINGER = 60.0


class Feed:
    """``guard`` learns what followers are told."""

    def __init__(
        self, records: Records, guard: Guard, clock: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._guard = guard
        self._fanout = Fanout(clock)
        self._marks = Marks()
        self._task: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None

    @property
    def live(self) -> bool:
        """Whether what followers are told is what the store has."""
        return self._task is not None and not self._guard.stale

    def verify(self, token: str) -> Identity | None:
        """Whose token it is by what followers were told last, without asking the store; None when
        that may be old. Raises Unauthorized."""
        return self._guard.verify(token) if self.live else None

    async def follow(self, namespace: str | None = None, mark: str = "") -> AsyncIterator[Update]:
        """As :meth:`Fanout.follow`."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._task is None or self._task.done():
            self._fanout.forget()  # what was known when the last one left is old
            self._task = asyncio.create_task(self._run(), name="auth-feed")
        updates = self._fanout.follow(namespace, mark)
        try:
            async with aclosing(updates):  # type: ignore[type-var]
                async for update in updates:
                    yield update
        finally:
            if not self._fanout.followers and self._task is not None and self._end is None:
                self._end = asyncio.get_running_loop().call_later(LINGER, self._stop)

    def _stop(self) -> None:
        self._end = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self._lost()

    async def close(self) -> None:
        self._fanout.close()
        if self._end is not None:
            self._end.cancel()
            self._end = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                revision = await self._records.revision()
                self._take(await self._load(revision))
                pause = BACKOFF[0]
                async with aclosing(self._records.follow(revision)) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        self._take(await self._update(change))
            except Conflict:
                log.info("auth reads everything again: the store's history was cut")
            except MicroError as error:
                log.warning("auth cannot be followed: %s", error)
                self._lost()
            except Exception:
                log.exception("following auth")
                self._lost()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    def _take(self, update: Update) -> None:
        self._fanout.take(update)
        self._guard.apply(update)

    def _lost(self) -> None:
        self._fanout.lost()
        self._guard.apply(Update(revision=self._guard.revision, stale=True))

    async def _load(self, revision: int) -> Update:
        rules: list[tuple[str, Rule]] = []
        revoked: list[Revocation] = []
        ring = Ring()
        marks = Marks()
        async for record in self._records.every(SHARED):
            if record.key == KEYS:
                ring = self._records.decode(record, Ring)
                continue
            marks.put(record.key, record.value)
            if record.key.startswith(RULE):
                space, _ = parted(record.key.removeprefix(RULE))
                rules.append((space, self._records.decode(record, Rule)))
            elif record.key.startswith(REVOKED):
                revoked.append(self._records.decode(record, Revocation))
        marks.key(encoded(ring))
        self._marks = marks
        return Update(
            revision=revision,
            full=True,
            keys=_public(ring),
            rules=tuple(rules),
            revoked=tuple(revoked),
            mark=marks.mark,
        )

    async def _update(self, change: Change) -> Update:
        """What a change of the store says to followers; it may say what a later one says again."""
        key, revision = change.key, change.revision
        update, value = Update(revision=revision), b""
        if key == KEYS:
            found = await self._records.get(SHARED, KEYS, Ring)
            ring = found[0] if found else Ring()
            self._marks.key(encoded(ring))
            return Update(revision=revision, keys=_public(ring), mark=self._marks.mark)
        if key.startswith(RULE):
            place = parted(key.removeprefix(RULE))
            rule = await self._records.get(SHARED, key, Rule)
            if rule is None:
                update = replace(update, gone=(place,))
            else:
                update, value = replace(update, rules=((place[0], rule[0]),)), encoded(rule[0])
        elif key.startswith(REVOKED):
            revoked = None  # its time is over
            if change.action is Action.PUT:
                revoked = await self._records.get(SHARED, key, Revocation)
            if revoked is not None:
                update, value = replace(update, revoked=(revoked[0],)), encoded(revoked[0])
        else:
            raise InternalError("auth", f"there is a record {key!r} that nobody knows")
        if value:
            self._marks.put(key, value)
        else:
            self._marks.remove(key)
        return replace(update, mark=self._marks.mark)


def _public(ring: Ring) -> tuple[Key, ...]:
    return tuple(row.key for row in ring.keys)
