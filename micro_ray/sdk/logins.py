"""Who one is logged in as, in a file of one's own: ``~/.micro/credentials.json``, mode 0600. The
command line writes it; it and every client read it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from micro_ray.errors import PreconditionFailed

__all__ = ["Login", "Logins"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """``expires`` is that of ``access``, in seconds since 1970."""

    id: str
    namespace: str
    access: str
    expires: float
    refresh: str


class Logins:
    """By the platform they are of (a folder of state, or an address)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, place: str) -> Login | None:
        """Raises PreconditionFailed for a file that others may read, or that is damaged."""
        row = self._load().get(place)
        return None if row is None else Login(**row)

    def write(self, place: str, login: Login | None) -> None:
        """Put one, or with None take it out."""
        with self._locked():
            rows = self._load()
            if login is None:
                rows.pop(place, None)
            else:
                rows[place] = asdict(login)
            new = self._path.with_name(f"{self._path.name}.new")
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                os.fchmod(file.fileno(), 0o600)
                json.dump(rows, file)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among the commands: a refresh token is good once."""
        with self._locked("refresh"):
            yield

    @contextlib.contextmanager
    def _locked(self, what: str = "lock") -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self._path.with_name(f"{self._path.name}.{what}"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            with self._path.open() as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise PreconditionFailed(
                        "client",
                        f"{self._path} holds credentials and can be read by others: "
                        f"chmod 600 {self._path}",
                    )
                rows: dict[str, dict[str, Any]] = json.load(file)
                for row in rows.values():
                    Login(**row)
                return rows
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError):
            raise PreconditionFailed(
                "client", f"{self._path} is damaged: remove it, and log in again"
            ) from None
