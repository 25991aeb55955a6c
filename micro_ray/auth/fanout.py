"""One source of updates, any number of followers: each gets everything, then what changes, and
everything again when it was too far behind or the source has begun anew."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from micro_ray.auth import Update
from micro_ray.auth.known import Known, narrowed, wide
from micro_ray.errors import Unavailable

__all__ = ["Fanout"]

#: Updates that are kept for followers that are behind; who is further behind gets everything.
KEPT = 1000
#: Namespaces whose everything is remembered while nothing changes, for many who come at once.
READY = 64


class Fanout:
    """``clock`` is wall-clock seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.known = Known(clock)
        #: Whether the source is out of reach.
        self.stale = False
        self.followers = 0
        #: How often everything has come, and the updates since; in the first life nothing has.
        self._life = 0
        #: What was known when this life began, and how many updates there had been.
        self._base = "", 0
        self._tail: deque[Update] = deque(maxlen=KEPT)
        self._number = 0
        self._everything: dict[str | None, Update] = {}
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether everything has come once."""
        return self._life > 0

    def take(self, update: Update) -> None:
        """What the source says."""
        if update.full and self._life and not update.stale:
            change = self.known.change(update)  # many follow: they need not have all of it again
            self.known.apply(update)
            self.stale = False
            self._tell(change)
        elif update.full:
            self.known.apply(update)
            self.stale = update.stale
            self._life += 1
            self._base = update.mark, self._number
            self._tail.clear()
            self._wake()
        elif update.stale:
            self.lost()
        else:
            self.known.apply(update)
            self.stale = self.stale and not update.resumed
            self._tell(update)

    def lost(self) -> None:
        """The source is out of reach: what is known may be old, until everything comes again."""
        if not self.stale:
            self.stale = True
            self._tell(Update(revision=self.known.revision, stale=True))

    def forget(self) -> None:
        """Nothing is known until everything comes."""
        self.known, self._life, self.stale = Known(self._clock), 0, False
        self._tail.clear()
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _tell(self, update: Update) -> None:
        self._number += 1
        self._tail.append(update)
        self._wake()

    def _wake(self) -> None:
        self._everything.clear()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _all(self, namespace: str | None) -> Update:
        update = self._everything.get(namespace)
        if update is None:
            update = self.known.everything(namespace, stale=self.stale)
            if len(self._everything) < READY:
                self._everything[namespace] = update
        return update

    def _since(self, mark: str) -> tuple[int, int]:
        """The life and the number of the update after which ``mark`` is what was known; 0 for one
        that is not remembered."""
        if not mark or not self._life:
            return 0, 0
        if mark == self.known.mark:
            return self._life, self._number
        for back, update in enumerate(reversed(self._tail)):
            if update.mark == mark:
                return self._life, self._number - back
        base, begun = self._base
        if mark == base and self._number - begun <= len(self._tail):
            return self._life, begun
        return 0, 0

    async def follow(self, namespace: str | None = None, mark: str = "") -> AsyncIterator[Update]:
        """Everything, or what has changed since ``mark``, then what changes; of the rules those of
        a namespace, unless it is None or the platform's. Raises Unavailable when this is closed."""
        namespace = wide(namespace)
        self.followers += 1
        life, seen = self._since(mark)
        resuming, told = life > 0, False
        try:
            while not self._closed:
                changed = self._changed
                behind = self._number - seen
                if not self._life:
                    if self.stale and not told:
                        told = True
                        yield Update(revision=-1, stale=True)
                        continue
                elif life != self._life or behind > len(self._tail):
                    life, seen, resuming = self._life, self._number, False
                    yield self._all(namespace)
                    continue
                elif behind:
                    fresh = [self._tail[-back] for back in range(behind, 0, -1)]
                    seen = self._number
                    for update in fresh:
                        yield narrowed(update, namespace)
                    continue
                elif resuming:
                    resuming = False
                    yield Update(
                        revision=self.known.revision,
                        stale=self.stale,
                        mark=self.known.mark,
                        resumed=True,
                    )
                    continue
                await changed.wait()
            raise Unavailable("auth", "auth is closed")
        finally:
            self.followers -= 1
