"""Changes of what should run, one at a time, each seen through: memory and store must not part,
whatever becomes of who asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from micro_ray.errors import BadGateway, MicroError, Unavailable

__all__ = ["Turns"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that who asks waits for a turn, and for the end of what was begun.
PATIENCE = 10.0


class Turns:
    """``lock`` is held by whoever changes something."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._begun: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """A turn; the next one's comes when what was begun in it has ended. Raises Unavailable when
        none comes in time."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.lock.acquire()
        except TimeoutError:
            raise Unavailable(
                "runtime",
                "nothing was changed: an earlier change waits for the store to answer",
                1.0,
            ) from None
        turn = Turn(self._begun)
        try:
            yield turn
        finally:
            if turn.task is None or turn.task.done():
                self.lock.release()
            else:
                turn.task.add_done_callback(lambda _: self.lock.release())

    async def close(self) -> None:
        """Give up what has begun; the next life of the runtime reads what became of it."""
        for task in self._begun:
            task.cancel()
        await asyncio.gather(*self._begun, return_exceptions=True)


class Turn:
    def __init__(self, begun: set[asyncio.Task[Any]]) -> None:
        self.task: asyncio.Task[Any] | None = None
        self._begun = begun

    async def see_through(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """What some work gives, which goes on when who asked is cancelled. Raises BadGateway when
        its end is not known in time; it is sought all the same."""
        self.task = task = asyncio.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(task)
        except TimeoutError:
            raise BadGateway(
                "runtime",
                f"whether {name} was changed is not known yet, as the store does not answer: "
                f"`micro status {name}` tells once it does",
            ) from None
        finally:
            if not task.done():
                task.add_done_callback(lambda _: _told(task, name))


def _told(task: asyncio.Task[Any], name: str) -> None:
    """Say what nobody waits for any more."""
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, MicroError):
        log.warning("%s was not changed: %s", name, error)
    elif error is not None:
        log.error("changing %s", name, exc_info=error)
