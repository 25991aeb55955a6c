"""What a cache knew last, in a file, so that one that restarts has something to serve before auth
answers."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from micro_ray.auth import Update
from micro_ray.sqlite import fsync_folder

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

#: Of the file's form; another one's is of no use.
VERSION = 1
#: Seconds that changes are gathered before the file is written.
DEBOUNCE = 0.2
#: Bytes of the largest file that is read.
LARGEST = 2**30


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    update: Update


class Keeper:
    """Writes at most every ``DEBOUNCE`` seconds, by rename once it is on disk: a reader finds the
    file before or this one, whole, also after a power failure. What is in it decides who may do
    what, so it is its owner's alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest: Callable[[], Update] | None = None
        self._task: asyncio.Task[None] | None = None

    def load(self) -> Update | None:
        """What was kept, stale, or None; a file that is of no use is reported and passed over.
        Blocks."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
                    raise OSError("others may write or read it")
                if about.st_size > LARGEST:
                    raise OSError(f"it has {about.st_size} bytes")
                kept = msgspec.msgpack.decode(file.read(), type=_File)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            log.warning("what is kept of auth in %s is of no use: %s", self._path, error)
            return None
        if kept.version != VERSION or not kept.update.full or not kept.update.keys:
            log.warning("what is kept of auth in %s is not everything", self._path)
            return None
        return replace(kept.update, stale=True)

    def keep(self, everything: Callable[[], Update]) -> None:
        """Write what this gives when its time has come."""
        self._latest = everything
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_soon())

    async def _write_soon(self) -> None:
        while self._latest is not None:
            await asyncio.sleep(DEBOUNCE)
            latest, self._latest = self._latest, None
            await asyncio.to_thread(self._write, latest())

    def _write(self, everything: Update) -> None:
        temporary = self._path.with_suffix(".new")
        try:
            temporary.unlink(missing_ok=True)  # one that others made keeps their mode
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.msgpack.encode(_File(version=VERSION, update=everything)))
                file.flush()
                # Else the name may be on disk before what it names.
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            fsync_folder(self._path.parent)
        except OSError as error:
            log.warning("what is known of auth cannot be kept in %s: %s", self._path, error)

    async def close(self) -> None:
        """Write what has not been written yet."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
