"""A small file of one's own, mode 0600, that many processes read and write: JSON by name."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from micro_ray.errors import PreconditionFailed
from micro_ray.files import locked, replace_file

__all__ = ["PrivateFile"]

#: Bytes that are read of one; a larger one is not ours.
MAX_SIZE = 2**20


class PrivateFile:
    """``what`` it holds and ``cure`` for a damaged one are for people."""

    def __init__(self, path: Path, *, what: str, cure: str) -> None:
        self.path = path
        self._what = what
        self._cure = cure

    def read(self) -> dict[str, Any]:
        """What it has, nothing when there is none. Raises PreconditionFailed for a file that others
        may read, or that is damaged."""
        try:
            with self.path.open() as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise PreconditionFailed(
                        "client",
                        f"{self.path} holds {self._what} and can be read by others: "
                        f"chmod 600 {self.path}",
                    )
                text = file.read(MAX_SIZE + 1)
            rows = json.loads(text) if len(text) <= MAX_SIZE else None
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            raise self.damaged() from None
        if not isinstance(rows, dict):
            raise self.damaged()
        return rows

    def damaged(self) -> PreconditionFailed:
        """What is said of one that has not what it should have."""
        return PreconditionFailed("client", f"{self.path} is damaged: {self._cure}")

    def write(self, rows: dict[str, Any]) -> None:
        """Replace all of it, within :meth:`locked`. Who reads meanwhile has what was, or is."""
        replace_file(self.path, json.dumps(rows).encode())

    def locked(self, what: str = "lock") -> AbstractContextManager[None]:
        """Alone among the processes."""
        return locked(self.path.with_name(f"{self.path.name}.{what}"))
