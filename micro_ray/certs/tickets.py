"""Tickets: secrets with which a process that is being started shows that it is the one.

A ticket is what it is for, until when, and a random part, signed by a key of the authority's
folder: nobody keeps a list of those that are out. That it is used once is the book's to know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from micro_ray.certs import Identity
from micro_ray.errors import Forbidden, MicroError, Unavailable

__all__ = ["Claim", "Tickets"]

MAX_TICKET = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a good ticket says; ``id`` is its random part."""

    identity: Identity
    expires: float
    id: str


class Tickets:
    """``path`` is the file of the key (mode 0600), made at the first use. Raises Unavailable when
    it cannot be read or written. Blocks at the first use."""

    def __init__(self, path: Path, *, ttl: float, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._ttl = ttl
        self._now = now
        self._key = b""

    def make(self, identity: Identity) -> tuple[str, float]:
        """A new ticket, and until when it is good."""
        expires = self._now() + self._ttl
        said = {"id": os.urandom(16).hex(), "expires": expires, "for": identity.uri}
        body = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
        return f"{body}.{self._mark(body)}", expires

    def read(self, ticket: str) -> Claim:
        """Raises Forbidden for one that is not ours, was changed, or is too old."""
        body, _, mark = ticket.partition(".")
        if len(ticket) > MAX_TICKET or not ticket.isascii():
            raise Forbidden("certs", "no ticket of ours")
        if not hmac.compare_digest(mark, self._mark(body)):
            raise Forbidden("certs", "no ticket of ours")
        try:
            said = json.loads(base64.urlsafe_b64decode(body))
            claim = Claim(
                identity=Identity.parse(said["for"]),
                expires=float(said["expires"]),
                id=str(said["id"]),
            )
        except (ValueError, KeyError, TypeError, binascii.Error, MicroError):
            raise Forbidden("certs", "no ticket of ours") from None
        if claim.expires <= self._now():
            raise Forbidden("certs", f"the ticket is over {self._ttl:g} s old")
        return claim

    def _mark(self, body: str) -> str:
        return hmac.new(self._secret(), body.encode(), hashlib.sha256).hexdigest()

    def _secret(self) -> bytes:
        if not self._key:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not self._path.exists():
                    self._write()
                self._key = self._path.read_bytes()
            except OSError as error:
                raise Unavailable("certs", f"{self._path}: {error.strerror}") from None
            if len(self._key) != 32:
                raise Unavailable("certs", f"{self._path} is no key; remove it for a new one")
        return self._key

    def _write(self) -> None:
        """Whole or not at all; of two who write at once one wins, and both read it."""
        new = self._path.with_suffix(f".{os.urandom(4).hex()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(new, self._path)
        except FileExistsError:
            pass
        finally:
            new.unlink()
