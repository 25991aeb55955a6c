"""Config as a service has it: the verbs of :mod:`micro_ray.config`, and values that follow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator
from typing import Any, cast

from micro_ray.config import Version
from micro_ray.errors import MicroError, NotFound
from micro_ray.wire.config import RemoteConfig

__all__ = ["ServiceConfig", "Watched"]

log = logging.getLogger(__name__)

#: Seconds between attempts to read a value again: first, and at most.
BACKOFF = (0.05, 2.0)


class ServiceConfig(RemoteConfig):
    """``await config.get("mail.port", 25)``, and::

    async with service.config.watched("mail.port", 25) as port:
        port.value             # the newest, always at hand
        await port.changed()   # the next
    """

    def watched(self, path: str, default: Any = None, *, secret: bool = False) -> Watched:
        """A value that follows what is at a path; ``default`` while nothing is there."""
        return Watched(self, path, default, secret)


class Watched:
    """An ``async with`` around a value that is kept up to date by a watch. Entered, it has been
    read once, and what reading raises is raised. Later the newest known value stays while config
    cannot be reached; ``stale`` says so after a minute, and it is followed again by itself."""

    def __init__(self, config: RemoteConfig, path: str, default: Any, secret: bool) -> None:
        self.value = default
        self.stale = True
        self._config = config
        self._path = path
        self._default = default
        self._secret = secret
        self._document = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watched:
        await self._read()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def changed(self) -> Any:
        """Wait for the next change and give the value after it."""
        await self._changed.wait()
        return self.value

    async def _read(self) -> None:
        # Before the value: what is written between the two is seen again, not missed.
        document = await self._config.version()
        try:
            found = await self._config.read(self._path, secret=self._secret)
        except NotFound as error:
            if error.id != "config":
                raise  # there is no config to ask
            self.value = self._default
        else:
            self.value = found.data
        self._document = document
        self.stale = False

    async def _follow(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                if self.stale:
                    await self._read()
                    self._tell()
                pause = BACKOFF[0]
                watch = self._config.watch(self._path, version=self._document)
                async with contextlib.aclosing(cast("AsyncGenerator[Version, None]", watch)) as all:
                    async for _ in all:
                        await self._read()
                        self._tell()
            except MicroError as error:
                if not self.stale:
                    log.warning("config %s is not followed for now: %s", self._path, error)
                self.stale = True
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
