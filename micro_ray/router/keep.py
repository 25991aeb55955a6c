"""The last good table in a file, so that a router that restarts has something to serve before the
registry answers."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from micro_ray.keeping import Keeping
from micro_ray.router import Delta

__all__ = ["Keeper"]

log = logging.getLogger(__name__)


class Keeper(Keeping[Delta]):
    """The table, written when it has changed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "the route table", msgspec.msgpack.encode)

    def load(self) -> Delta | None:
        """What was kept, or None; an unreadable file is reported and passed over."""
        try:
            return msgspec.msgpack.decode(self.path.read_bytes(), type=Delta)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            log.warning("the kept route table %s is of no use: %s", self.path, error)
            return None
