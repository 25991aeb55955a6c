"""Watches over a database that tells nobody anything: one task asks it what is new.

It asks for the newest versions of all watched namespaces by one statement, every 10 ms after a
change and ever less often in silence, up to 50 ms; a commit of this process wakes it at once. What
is new is read once per namespace and kept for a while, and all watchers of the namespace take it
from there. Versions are dense and given in the order of commits, so what follows a version is
complete when its numbers are without a hole, and a hole means that the history was cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from itertools import islice

from micro_ray.errors import Conflict, MicroError, Unavailable
from micro_ray.store import Action, Change, checks
from micro_ray.store.postgres_connection import Connection
from micro_ray.store.postgres_database import Database
from micro_ray.store.postgres_isolation import EVERYTHING

__all__ = ["Watches"]

log = logging.getLogger(__name__)

#: Seconds between questions: after a change, and at most; and after one that failed.
POLL = (0.01, 0.05)
_FAILED = 0.5
#: Changes read at a time, and kept per watched namespace for all who follow.
PAGE, _TAIL = 1000, 2000


class _Feed:
    """A namespace that is watched: its latest changes, as far as they were read."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.tail: deque[Change] = deque(maxlen=_TAIL)
        self.changed = asyncio.Event()
        self.watchers = 0

    def add(self, changes: Sequence[Change]) -> None:
        self.tail.extend(changes)
        self.newest = changes[-1].revision
        self.wake()

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def after(self, revision: int) -> list[Change] | None:
        """What follows a revision; None when it is not kept here."""
        if revision >= self.newest:
            return []
        if not self.tail or revision + 1 < self.tail[0].revision:
            return None
        return list(islice(self.tail, revision + 1 - self.tail[0].revision, None))


class Watches:
    """All watches of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feeds: dict[str, _Feed] = {}
        self._nudge = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Watches end with Unavailable."""
        self._closed = True
        for feed in self._feeds.values():
            feed.wake()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    def wake(self) -> None:
        """Something was committed here."""
        self._nudge.set()

    async def follow(self, namespace: str, revision: int) -> AsyncGenerator[Change, None]:
        """All changes of a namespace after a revision, for ever, across failures of the database.
        Raises Conflict when they are no longer kept or that revision was never given, Unavailable
        when the store is closed."""
        feed = self._feeds.get(namespace)
        if feed is None:
            newest = await newest_of(self._database, namespace)
            feed = self._feeds.setdefault(namespace, _Feed(newest))
        feed.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="store-watch")
        try:
            if revision > feed.newest:
                # Perhaps another process has just given it, and the feed does not know yet.
                newest = await newest_of(self._database, namespace)
                if revision > newest:
                    raise checks.beyond(revision, newest)
            while not self._closed:
                changed = feed.changed
                rows = feed.after(revision)
                if rows is None:
                    rows = await self._page(namespace, revision)
                for row in rows:
                    revision = row.revision
                    yield row
                if not rows:
                    await changed.wait()
            raise Unavailable("store", "the store is closed")
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                del self._feeds[namespace]

    async def _page(self, namespace: str, revision: int) -> list[Change]:
        """The next changes after a revision, from the database."""

        async def job(connection: Connection) -> list[Change]:
            cursor = await connection.execute(
                "SELECT revision, action, db, tbl, key FROM micro_store_changes"
                " WHERE namespace = %s AND revision > %s ORDER BY revision LIMIT %s",
                (namespace, revision, PAGE),
            )
            return [
                Change(revision=n, action=Action(action), database=db, table=tbl, key=key)
                for n, action, db, tbl, key in await cursor.fetchall()
            ]

        changes = await self._database.ask(namespace, job)
        if changes and changes[0].revision != revision + 1:
            raise Conflict("store", f"changes after {revision} are no longer kept")
        return changes

    async def _poll(self) -> None:
        """Ends by itself when nobody watches any more."""
        pause = POLL[0]
        while self._feeds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._nudge.wait()
            self._nudge.clear()
            try:
                found = await self._look()
            except MicroError as error:
                log.warning("watches of the store wait: %s", error)
                await asyncio.sleep(_FAILED)
                continue
            pause = POLL[0] if found else min(pause * 1.5, POLL[1])

    async def _look(self) -> bool:
        """Whether there was anything new."""
        names = list(self._feeds)

        async def job(connection: Connection) -> list[tuple[str, int]]:
            cursor = await connection.execute(
                "SELECT namespace, revision FROM micro_store_counters WHERE namespace = ANY(%s)",
                (names,),
            )
            return [(name, int(newest)) for name, newest in await cursor.fetchall()]

        found = False
        for name, newest in await self._database.ask(EVERYTHING, job):
            feed = self._feeds.get(name)
            while feed is not None and feed.newest < newest:
                found = True
                try:
                    changes = await self._page(name, feed.newest)
                except Conflict:  # so long away that watchers must look for themselves
                    changes = []
                if not changes:
                    feed.tail.clear()
                    feed.newest = newest
                    feed.wake()
                    break
                if changes[0].revision == feed.newest + 1:
                    feed.add(changes)
        return found


async def newest_of(database: Database, namespace: str) -> int:
    """The newest version given in a namespace; 0 for none."""

    async def job(connection: Connection) -> int:
        cursor = await connection.execute(
            "SELECT revision FROM micro_store_counters WHERE namespace = %s", (namespace,)
        )
        row = await cursor.fetchone()
        return 0 if row is None else int(row[0])

    return await database.ask(namespace, job)
