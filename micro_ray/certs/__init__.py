"""certs: who a process is, and the local authority that says so.

A process has a key that never leaves it and a short-lived certificate whose only statement is an
:class:`Identity`. :class:`Authority` issues them from signing requests; :class:`Renewal` (in
``renewal.py``) keeps one fresh. What they are good for between nodes is the business of ``wire``.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass

from micro_ray.errors import BadRequest

__all__ = ["SCHEME", "Authority", "Credential", "Identity", "Issued"]

SCHEME = "spiffe://micro/"
_WORD = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_MAX = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A node of a service of a namespace. Raises BadRequest for words that cannot be in one:
    letters, digits, '.', '_' and '-', at most 253 characters, a letter or digit at both ends."""

    namespace: str
    service: str
    node: str

    def __post_init__(self) -> None:
        for what in ("namespace", "service", "node"):
            word = getattr(self, what)
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise BadRequest(
                    "certs", f"{what} {word!r:.80}: letters, digits, '.', '_' and '-' only"
                )

    @property
    def uri(self) -> str:
        """As certificates have it: ``spiffe://micro/<namespace>/<service>/<node>``."""
        return f"{SCHEME}{self.namespace}/{self.service}/{self.node}"

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Raises BadRequest for what is no such URI."""
        parts = uri[len(SCHEME) :].split("/")
        if len(uri) > _MAX or not uri.startswith(SCHEME) or len(parts) != 3:
            raise BadRequest(
                "certs", f"not an identity: {uri[:200]!r} ({SCHEME}<namespace>/<service>/<node>)"
            )
        return cls(namespace=parts[0], service=parts[1], node=parts[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and whom to trust, both PEM; ``begins`` and ``ends`` are seconds of the wall
    clock between which it is valid."""

    certificate: bytes
    trusted: bytes
    begins: float
    ends: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a process shows: its private key (PEM, never sent anywhere) and what it was issued."""

    key: bytes
    issued: Issued

    def __repr__(self) -> str:
        return f"Credential(ends={self.issued.ends!r})"


class Authority(abc.ABC):
    """Issues certificates. Whoever may call it decides for whom: it does not ask."""

    @abc.abstractmethod
    async def issue(self, request: bytes, identity: Identity, *, ttl: float) -> Issued:
        """A certificate for the key of a PKCS#10 signing request (PEM, 8 KiB at most), valid from
        a minute ago for ``ttl`` seconds (60 to 30 days), for calling and for serving. Nothing but
        the key is taken from the request.

        Raises BadRequest for a request that cannot be read, whose signature is not by its own key,
        or whose key is not P-256, and for a ``ttl`` out of range.
        """

    @abc.abstractmethod
    async def trusted(self) -> bytes:
        """The certificates to trust, PEM, the newest first."""

    @abc.abstractmethod
    async def rotate(self) -> None:
        """Sign with a new key from now on. The former is still trusted, until :meth:`retire`."""

    @abc.abstractmethod
    async def retire(self) -> None:
        """Trust the newest key alone. What others have signed is refused by those who have learnt
        it, at their next renewal."""
