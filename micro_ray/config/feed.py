"""New versions of one namespace, for all who watch it: one task follows the store, however many
watch, and goes on where it was when the store comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator

from micro_ray.config.document import Entry
from micro_ray.config.records import Records
from micro_ray.errors import Conflict, InternalError, MicroError, Unavailable

__all__ = ["PATIENCE", "Feed"]

log = logging.getLogger(__name__)

#: Seconds that watchers wait for a store that does not answer before they are told.
PATIENCE = 60.0
#: Seconds between attempts to reach it: first, and at most.
BACKOFF = (0.02, 1.0)
#: Entries that are held for those who watch.
HELD = 64


class Feed:
    """``watch`` gives the entries after a version. The task runs while somebody watches."""

    def __init__(self, records: Records, namespace: str) -> None:
        self._records = records
        self._namespace = namespace
        self._held: dict[int, Entry] = {}
        self._newest = 0
        self._changed = asyncio.Event()
        self._failed: MicroError | None = None
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None

    async def watch(self, version: int) -> AsyncGenerator[Entry, None]:
        """Entries after ``version``, in order, each once. Raises Conflict when one of them is no
        longer kept, Unavailable when the store has not answered for a minute."""
        self._watchers += 1
        if self._task is None or self._task.done():
            self._failed = None
            self._task = asyncio.create_task(self._follow())
        try:
            while True:
                changed = self._changed
                entry = self._held.get(version + 1)
                if entry is None and version < self._newest:
                    entry = await self._read(version + 1)
                if entry is not None:
                    version = entry.version
                    yield entry
                    continue
                if self._failed is not None:
                    raise type(self._failed)(*self._failed.args)
                await changed.wait()
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._stop()

    @property
    def idle(self) -> bool:
        """Whether nobody watches."""
        return not self._watchers

    def close(self) -> None:
        """End the watches with Unavailable."""
        self._stop()
        self._fail(Unavailable("config", "the config is closed"))

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._held.clear()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _read(self, version: int) -> Entry:
        """An entry that is not held, from the store when it is back."""
        end = time.monotonic() + PATIENCE
        pause = BACKOFF[0]
        while True:
            try:
                return await self._records.entry(self._namespace, version)
            except Conflict:
                raise
            except MicroError:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    async def _follow(self) -> None:
        """Hold what is written, from now on."""
        failing, pause = 0.0, BACKOFF[0]
        while True:
            try:
                # The order counts: what is written between the two is seen by both.
                revision = await self._records.revision()
                head = await self._records.head(self._namespace)
                failing, pause = 0.0, BACKOFF[0]
                self._reached(head.document.version)
                follow = self._records.follow(self._namespace, revision)
                async with contextlib.aclosing(follow) as numbers:
                    async for number in numbers:
                        if number > self._newest:
                            await self._hold(number)
            except MicroError as error:
                failing = failing or time.monotonic()
                if time.monotonic() > failing + PATIENCE:
                    self._fail(error)
                    return
            except Exception as error:
                log.exception("following the config of %s", self._namespace)
                self._fail(InternalError("config", f"the watch failed: {error}"))
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    def _fail(self, error: MicroError) -> None:
        self._failed = error
        self._wake()

    def offer(self, entry: Entry) -> None:
        """An entry that the store has; of use when it is the next."""
        if self._task is not None and entry.version == self._newest + 1:
            self._keep(entry)

    async def _hold(self, number: int) -> None:
        self._keep(await self._records.entry(self._namespace, number))

    def _keep(self, entry: Entry) -> None:
        self._held[entry.version] = entry
        while len(self._held) > HELD:
            self._held.pop(next(iter(self._held)))
        self._reached(entry.version)

    def _reached(self, number: int) -> None:
        if number > self._newest:
            self._newest = number
            self._wake()
