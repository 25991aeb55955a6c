"""The book of what was issued: who has a certificate that lives, whom he trusts, and which tickets
were used. A file of lines, one for each certificate, so that it is known after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from micro_ray.errors import TooManyRequests, Unavailable
from micro_ray.files import replace_file

__all__ = ["MAX_LIVE", "Book", "Entry"]

#: Identities with a certificate that lives; more are refused.
MAX_LIVE = 100_000
#: Lines of the file beyond those that are needed, before it is written anew.
SPARE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A certificate: whose (a URI), signed by which root, and the roots that were handed out with
    it. ``key`` is a digest of its public key; ``ticket`` the id of the ticket that it was for, and
    ``until`` when that, or the certificate, has ended."""

    identity: str
    begins: float
    ends: float
    root: str
    knows: tuple[str, ...]
    key: str
    ticket: str = ""
    until: float = 0.0


class Book:
    """One process writes it. Blocks: verbs are for a thread, one at a time."""

    def __init__(
        self, path: Path, *, most: int = MAX_LIVE, now: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._most = most
        self._now = now
        self._latest: dict[str, Entry] = {}
        self._tickets: dict[str, Entry] = {}
        self._lines = 0
        #: What ends a line that a kill has left half written.
        self._begin = ""

    def load(self) -> None:
        """Read what an earlier life has left. Raises Unavailable."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable("certs", f"{self._path} cannot be read: {error}") from None
        self._begin = "" if text.endswith("\n") or not text else "\n"
        for line in text.splitlines():
            self._lines += 1
            try:
                said = json.loads(line)
                self._take(Entry(**{**said, "knows": tuple(said["knows"])}))
            except (ValueError, TypeError, KeyError):
                continue  # the machine stopped while it was written: nobody got the certificate

    @property
    def live(self) -> list[Entry]:
        """The last certificate of each identity, if it has not ended; by name."""
        now = self._now()
        self._latest = {name: e for name, e in self._latest.items() if e.ends > now}
        return [self._latest[name] for name in sorted(self._latest)]

    def used(self, ticket: str) -> Entry | None:
        """The certificate for which a ticket was used."""
        return self._tickets.get(ticket)

    def last(self, identity: str) -> Entry | None:
        return self._latest.get(identity)

    def check_room(self) -> None:
        """Raises TooManyRequests when too many are alive."""
        if len(self._latest) >= self._most and len(self.live) >= self._most:
            raise TooManyRequests("certs", f"{self._most} certificates are alive", 60.0)

    def enter(self, entry: Entry) -> None:
        """It is in the file when this returns. Raises Unavailable."""
        self._take(entry)
        try:
            if self._lines > 2 * (len(self._latest) + len(self._tickets)) + SPARE:
                self._rewrite()
                return
            self._append(_line(entry))
        except OSError as error:
            raise Unavailable("certs", f"{self._path} cannot be written: {error}") from None

    def _take(self, entry: Entry) -> None:
        self._latest[entry.identity] = entry
        if entry.ticket:
            self._tickets[entry.ticket] = entry

    def _append(self, line: str) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(self._begin + line)
        self._begin = ""
        self._lines += 1

    def _rewrite(self) -> None:
        now = self._now()
        self._tickets = {id: e for id, e in self._tickets.items() if e.until > now}
        kept = {id(e): e for e in (*self._tickets.values(), *self.live)}
        replace_file(self._path, "".join(map(_line, kept.values())).encode())
        self._lines = len(kept)


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"
