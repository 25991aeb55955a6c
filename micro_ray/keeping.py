"""What a process knew last, in a file, so that one that restarts has something to begin with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from micro_ray.files import replace_file

__all__ = ["Keeping"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that changes are gathered before the file is written.
DEBOUNCE = 0.2


class Keeping(Generic[T]):
    """Writes at most every ``DEBOUNCE`` seconds, whole (``files.replace_file``). ``encode`` makes
    the bytes, in a thread; ``what`` it is is for the log, where a file that cannot be written is
    reported."""

    def __init__(self, path: Path, what: str, encode: Callable[[T], bytes]) -> None:
        self.path = path
        self._what = what
        self._encode = encode
        self._latest: Callable[[], T] | None = None
        self._task: asyncio.Task[None] | None = None

    def keep(self, latest: Callable[[], T]) -> None:
        """Write what ``latest`` gives when its time has come."""
        self._latest = latest
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_soon())

    async def _write_soon(self) -> None:
        while self._latest is not None:
            await asyncio.sleep(DEBOUNCE)
            latest, self._latest = self._latest, None
            await asyncio.to_thread(self._write, latest())

    def _write(self, value: T) -> None:
        try:
            replace_file(self.path, self._encode(value))
        except OSError as error:
            log.warning("%s cannot be kept in %s: %s", self._what, self.path, error)

    async def close(self) -> None:
        """Write what has not been written yet."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
