"""Who one is logged in as, in a file of one's own: ``~/.micro/credentials.json``, mode 0600. The
command line writes it; it and every client read it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from micro_ray.sdk.private import PrivateFile

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
        self._file = PrivateFile(path, what="credentials", cure="remove it, and log in again")

    def read(self, place: str) -> Login | None:
        """Raises PreconditionFailed for a file that others may read, or that is damaged."""
        return self._load().get(place)

    def write(self, place: str, login: Login | None) -> None:
        """Put one, or with None take it out."""
        with self._file.locked():
            known = self._load()
            if login is None:
                known.pop(place, None)
            else:
                known[place] = login
            self._file.write({name: asdict(row) for name, row in known.items()})

    def locked(self) -> AbstractContextManager[None]:
        """Alone among the commands: a refresh token is good once."""
        return self._file.locked("refresh")

    def _load(self) -> dict[str, Login]:
        try:
            return {place: Login(**row) for place, row in self._file.read().items()}
        except TypeError:
            raise self._file.damaged() from None
