"""What a cache knew last, in a file, so that one that restarts has something to serve before auth
answers."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import msgspec

from micro_ray.auth import Update
from micro_ray.keeping import Keeping

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

#: Of the file's form; another one's is of no use.
VERSION = 1
#: Bytes of the largest file that is read.
LARGEST = 2**30


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    update: Update


class Keeper(Keeping[Update]):
    """All that is known, written when it has changed. It decides who may do what, so it is its
    owner's alone."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "what is known of auth", _encoded)

    def load(self) -> Update | None:
        """What was kept, stale, or None; a file that is of no use is reported and passed over.
        Blocks."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
                    raise OSError("others may write or read it")
                if about.st_size > LARGEST:
                    raise OSError(f"it has {about.st_size} bytes")
                kept = msgspec.msgpack.decode(file.read(), type=_File)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            log.warning("what is kept of auth in %s is of no use: %s", self.path, error)
            return None
        if kept.version != VERSION or not kept.update.full or not kept.update.keys:
            log.warning("what is kept of auth in %s is not everything", self.path)
            return None
        return replace(kept.update, stale=True)


def _encoded(everything: Update) -> bytes:
    return msgspec.msgpack.encode(_File(version=VERSION, update=everything))
