"""certs: who a process is, and the local authority that says so.

A process has a key that never leaves it and a short-lived certificate whose only statement is an
:class:`Identity`. :class:`Authority` issues them from signing requests; :class:`Certs` is the
service around it: it knows who may have which, and replaces the authority's key while calls go on.
:class:`Renewal` (in ``renewal.py``) keeps a certificate fresh. What they are good for between nodes
is the business of ``wire``.
"""

from __future__ import annotations

import abc
import builtins
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from micro_ray.errors import BadRequest

__all__ = [
    "SCHEME",
    "Authority",
    "Certificate",
    "Certs",
    "Credential",
    "Identity",
    "Issued",
    "Root",
    "Roots",
    "Ticket",
]

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
    clock between which it is valid, ``identity`` the URI that it says."""

    certificate: bytes
    trusted: bytes
    begins: float
    ends: float
    identity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a process shows: its private key (PEM, never sent anywhere) and what it was issued."""

    key: bytes
    issued: Issued

    def __repr__(self) -> str:
        return f"Credential(ends={self.issued.ends!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A key of the authority. ``state``: "signs", "next" (trusted already, signs once everybody
    trusts it) or "former" (trusted as long as what it has signed lives). ``id`` is the SHA-256 of
    its certificate, in hex."""

    id: str
    state: str
    begins: float
    ends: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Whom to trust: ``trusted`` is PEM, the newest first; ``roots`` the same in words."""

    trusted: bytes
    roots: tuple[Root, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Good for one certificate until ``expires``; ``trusted`` is how the authority's own process is
    known to whoever brings it."""

    secret: str
    trusted: bytes
    expires: float

    def __repr__(self) -> str:
        return f"Ticket(expires={self.expires!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One that was issued last to an identity and has not ended; ``root`` is the id of the key that
    has signed it."""

    namespace: str
    service: str
    node: str
    begins: float
    ends: float
    root: str


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
    async def roots(self) -> Roots:
        """The same, and what each is."""

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Have the key that signs after the next :meth:`rotate`: it is trusted from now on. Does
        nothing when there is one already."""

    @abc.abstractmethod
    async def rotate(self) -> None:
        """Sign with the next key from now on, a new one when none was prepared. The former is still
        trusted, until :meth:`retire`."""

    @abc.abstractmethod
    async def retire(self) -> None:
        """Trust the newest key alone. What others have signed is refused by those who have learnt
        it, at their next renewal."""


class Certs(abc.ABC):
    """The service. ``issue`` and ``ticket`` are for those who own the machine, and are not on
    frames; the others are for every process."""

    @abc.abstractmethod
    async def issue(self, request: bytes, identity: Identity, *, ttl: float = 0.0) -> Issued:
        """A certificate for whom the caller says (``ttl`` in seconds, at most the settings'; 0: as
        long). Raises as :meth:`Authority.issue`, and TooManyRequests when too many are alive."""

    @abc.abstractmethod
    async def ticket(self, identity: Identity) -> Ticket:
        """A secret with which a process that is being started gets the certificate of this identity
        by :meth:`sign`."""

    @abc.abstractmethod
    async def sign(
        self, request: bytes, *, ticket: str = "", certificate: bytes = b"", proof: bytes = b""
    ) -> Issued:
        """A certificate for who has a ticket, or for who has one already: ``certificate`` is that
        and ``proof`` the signature of the request by its key (``keys.prove``). A ticket is good for
        the key of the first request that it came with, so that an answer that was lost can be asked
        for again. A certificate may have ended, a day ago at most: its process was asleep.

        Raises Forbidden for a ticket, a certificate or a proof that is not good, BadRequest for a
        request that cannot be read.
        """

    @abc.abstractmethod
    async def roots(self) -> Roots:
        """Whom to trust now."""

    @abc.abstractmethod
    async def list(self) -> builtins.list[Certificate]:
        """The certificates that are alive, one for each identity, by name."""

    @abc.abstractmethod
    async def renew(self) -> Roots:
        """Begin to replace the authority's key, and return at once. The new one is published first;
        it signs when nobody is alive who does not trust it, and the former is no longer trusted
        when nothing that it has signed is alive: one lifetime of a certificate later each, at the
        latest. Does nothing while a change is under way."""

    @abc.abstractmethod
    def watch(self) -> AsyncIterator[Roots]:
        """Whom to trust, now and whenever that, or who signs, has changed; for ever."""
