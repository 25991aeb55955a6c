"""The last good table in a file, so that a router that restarts has something to serve before the
registry answers."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from micro_ray.router import Delta
from micro_ray.sqlite import fsync_folder

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

#: Seconds that changes are gathered before the file is written.
DEBOUNCE = 0.2


class Keeper:
    """Writes the table when it has changed, at most every ``DEBOUNCE`` seconds, by rename once it
    is on disk: a reader finds the one before or this one, whole, also after a power failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest: Callable[[], Delta] | None = None
        self._task: asyncio.Task[None] | None = None

    def load(self) -> Delta | None:
        """What was kept, or None; an unreadable file is reported and passed over."""
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=Delta)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            log.warning("the kept route table %s is of no use: %s", self._path, error)
            return None

    def keep(self, full: Callable[[], Delta]) -> None:
        """Write what ``full`` gives when its time has come."""
        self._latest = full
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_soon())

    async def _write_soon(self) -> None:
        while self._latest is not None:
            await asyncio.sleep(DEBOUNCE)
            latest, self._latest = self._latest, None
            await asyncio.to_thread(self._write, latest())

    def _write(self, full: Delta) -> None:
        temporary = self._path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.msgpack.encode(full))
                file.flush()
                # Else the name may be on disk before what it names.
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            fsync_folder(self._path.parent)
        except OSError as error:
            log.warning("the route table cannot be kept in %s: %s", self._path, error)

    async def close(self) -> None:
        """Write what has not been written yet."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
