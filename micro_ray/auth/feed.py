"""What guards follow: one task per process reads it from the store, and all followers take it from
there."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing

from micro_ray.auth import Key, Revocation, Rule, Update
from micro_ray.auth.records import KEYS, REVOKED, RULE, SHARED, Records, Ring, parted, revoked_key
from micro_ray.errors import Conflict, InternalError, MicroError, Unavailable
from micro_ray.store import Action, Change

__all__ = ["Feed"]

log = logging.getLogger(__name__)

#: Updates that are kept for followers that are behind; who is further behind gets everything.
KEPT = 1000
#: Seconds between attempts to read the store: first, and at most.
BACKOFF = (0.02, 1.0)


class Feed:
    def __init__(self, records: Records) -> None:
        self._records = records
        self._keys: tuple[Key, ...] = ()
        self._rules: dict[tuple[str, str], Rule] = {}
        self._revoked: dict[str, Revocation] = {}
        self._revision = -1
        #: How often everything was read, and the updates since.
        self._life = 0
        self._tail: deque[tuple[int, Update]] = deque(maxlen=KEPT)
        self._number = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._followers = 0
        self._closed = False

    async def follow(self) -> AsyncIterator[Update]:
        """Everything, then what changes. Raises Unavailable when this is closed."""
        self._followers += 1
        if self._task is None or self._task.done():
            self._life, self._task = 0, asyncio.create_task(self._run(), name="auth-feed")
        life, seen = 0, 0
        try:
            while not self._closed:
                changed = self._changed
                if self._life and (life != self._life or self._number - seen > len(self._tail)):
                    life, seen = self._life, self._number
                    yield self._everything()
                    continue
                fresh = [update for number, update in self._tail if number > seen] if life else []
                seen = max(seen, self._number) if life else 0
                for update in fresh:
                    yield update
                if not fresh:
                    await changed.wait()
            raise Unavailable("auth", "auth is closed")
        finally:
            self._followers -= 1
            if not self._followers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def close(self) -> None:
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._wake()

    def _everything(self) -> Update:
        return Update(
            revision=self._revision,
            full=True,
            keys=self._keys,
            rules=tuple((space, rule) for (space, _), rule in self._rules.items()),
            revoked=tuple(self._revoked.values()),
        )

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _run(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                revision = await self._records.revision()
                await self._load(revision)
                pause = BACKOFF[0]
                async with aclosing(self._records.follow(revision)) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        self._add(await self._update(change))
            except Conflict:
                log.info("auth reads everything again: the store's history was cut")
            except MicroError as error:
                log.warning("auth cannot be followed: %s", error)
                self._tell(Update(revision=self._revision, stale=True))
            except Exception:
                log.exception("following auth")
                self._tell(Update(revision=self._revision, stale=True))
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    async def _load(self, revision: int) -> None:
        rules: dict[tuple[str, str], Rule] = {}
        revoked: dict[str, Revocation] = {}
        keys: tuple[Key, ...] = ()
        async for record in self._records.every(SHARED):
            if record.key == KEYS:
                keys = _public(self._records.decode(record, Ring))
            elif record.key.startswith(RULE):
                rules[parted(record.key.removeprefix(RULE))] = self._records.decode(record, Rule)
            elif record.key.startswith(REVOKED):
                revoked[record.key] = self._records.decode(record, Revocation)
        self._keys, self._rules, self._revoked = keys, rules, revoked
        self._revision = revision
        self._life += 1
        self._tail.clear()
        self._wake()

    async def _update(self, change: Change) -> Update:
        """What a change of the store says to followers; it may say what a later one says again."""
        key, revision = change.key, change.revision
        if key == KEYS:
            ring = await self._records.get(SHARED, KEYS, Ring)
            return Update(revision=revision, keys=_public(ring[0]) if ring else ())
        if key.startswith(RULE):
            place = parted(key.removeprefix(RULE))
            rule = await self._records.get(SHARED, key, Rule)
            if rule is None:
                return Update(revision=revision, gone=(place,))
            return Update(revision=revision, rules=((place[0], rule[0]),))
        if key.startswith(REVOKED) and change.action is Action.PUT:
            revoked = await self._records.get(SHARED, key, Revocation)
            if revoked is not None:
                return Update(revision=revision, revoked=(revoked[0],))
        elif not key.startswith(REVOKED):
            raise InternalError("auth", f"there is a record {key!r} that nobody knows")
        self._revoked.pop(key, None)  # its time is over
        return Update(revision=revision)

    def _add(self, update: Update) -> None:
        if update.keys is not None:
            self._keys = update.keys
        for space, rule in update.rules:
            self._rules[space, rule.id] = rule
        for place in update.gone:
            self._rules.pop(place, None)
        for revoked in update.revoked:
            self._revoked[revoked_key(revoked)] = revoked
        self._revision = update.revision
        self._tell(update)

    def _tell(self, update: Update) -> None:
        self._number += 1
        self._tail.append((self._number, update))
        self._wake()


def _public(ring: Ring) -> tuple[Key, ...]:
    return tuple(row.key for row in ring.keys)
