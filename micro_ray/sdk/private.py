"""A small file of one's own, mode 0600, that many processes read and write: JSON by name."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from micro_ray.errors import PreconditionFailed

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
        new = self.path.with_name(f"{self.path.name}.new")
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(rows, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.path)

    @contextlib.contextmanager
    def locked(self, what: str = "lock") -> Iterator[None]:
        """Alone among the processes."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self.path.with_name(f"{self.path.name}.{what}"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
