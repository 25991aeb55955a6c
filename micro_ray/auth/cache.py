"""A copy of what auth tells guards, which tells it on: many follow it, it alone follows auth."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from micro_ray.auth import DEFAULT, Caller, Update, checks
from micro_ray.auth.fanout import Fanout
from micro_ray.auth.guard import Guard
from micro_ray.auth.keep import Keeper
from micro_ray.errors import MicroError, Unauthorized
from micro_ray.finding import Finding

__all__ = ["Cache", "Status"]

log = logging.getLogger(__name__)

#: Seconds between attempts to follow the source: first, and at most.
BACKOFF = (0.01, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """``stale``: the source has been out of reach since ``since`` (seconds since 1970), and what is
    known may be old; else it has been followed since then. The rest are counts."""

    revision: int
    stale: bool
    since: float
    followers: int
    keys: int
    rules: int
    revoked: int


class Cache:
    """An ``async with`` that follows ``source`` as long as it is entered, and serves followers.

    While the source is out of reach they are told that all is stale, and all holds. With ``keep``,
    a file, what was known last is served (stale) by the next life until its source answers.
    ``guard`` judges the tokens of who comes, by what is told here.
    """

    def __init__(
        self,
        source: Callable[[], AsyncIterator[Update]],
        *,
        keep: Path | None = None,
        guard: Guard | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._keeper = None if keep is None else Keeper(keep)
        self._guard = guard or Guard(clock=clock)
        self._clock = clock
        self._fanout = Fanout(clock)
        self._since = clock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Cache:
        kept = None if self._keeper is None else await asyncio.to_thread(self._keeper.load)
        if kept is not None:
            self._take(kept)
        self._task = asyncio.create_task(self._run(), name="auth-cache")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Followers end with Unavailable; what is known is written. Idempotent."""
        self._fanout.close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._keeper is not None:
            await self._keeper.close()

    async def follow(
        self, namespace: str | None = None, *, mark: str = "", by: Caller
    ) -> AsyncIterator[Update]:
        """As :meth:`micro_ray.auth.Auth.follow`, for the same. Raises Unauthorized for a token that
        is none, Forbidden for who may not, Unavailable for a token while nothing is known, and at
        the end."""
        checks.namespace_of(namespace or DEFAULT)
        whom = self._guard.verify(by) if isinstance(by, str) else by
        space = checks.followed(whom, namespace)
        async with aclosing(self._fanout.follow(space, mark)) as updates:  # type: ignore[type-var]
            async for update in updates:
                yield update

    async def status(self) -> Status:
        known = self._fanout.known
        return Status(
            revision=known.revision,
            stale=self._stale,
            since=self._since,
            followers=self._fanout.followers,
            keys=len(known.keys),
            rules=len(known.rules),
            revoked=len(known.revoked),
        )

    async def examine(self) -> list[Finding]:
        """Whether it follows auth."""
        status = await self.status()
        if not status.stale:
            text = f"follows auth; {status.followers} follow it"
            return [Finding(check="auth cache", good=True, text=text)]
        known = f"knows what held at revision {status.revision}" if self._fanout.ready else "empty"
        text = f"auth is out of reach ({known}): look at the log of its actors"
        return [Finding(check="auth cache", good=False, text=text)]

    @property
    def _stale(self) -> bool:
        return self._fanout.stale or not self._fanout.ready

    def _take(self, update: Update) -> None:
        before = self._stale
        if update.full and update.stale and self._fanout.ready:
            # Who says so is out of reach of the source, and may know less than is known here.
            for revoked in update.revoked:
                self._fanout.take(Update(revision=self._fanout.known.revision, revoked=(revoked,)))
            self._fanout.lost()
        else:
            self._fanout.take(update)
        self._guard.apply(update)
        if before != self._stale:
            self._since = self._clock()

    def _lost(self) -> None:
        self._take(Update(revision=self._fanout.known.revision, stale=True))

    async def _run(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                async with aclosing(self._source()) as updates:  # type: ignore[type-var]
                    async for update in updates:
                        self._take(update)
                        if not self._stale:
                            pause = BACKOFF[0]
                        if self._keeper is not None and not update.stale:
                            self._keeper.keep(self._fanout.known.everything)
            except Unauthorized as error:
                log.warning("auth does not let itself be followed: %s", error)
            except MicroError as error:
                log.info("auth cannot be followed: %s", error)
            except Exception:
                log.exception("following auth")
            self._lost()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])
