"""Mutual TLS on TCP: what a process shows, whom it believes, and who the other side is."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from dataclasses import dataclass
from typing import Protocol

from micro_ray.certs import Credential, Identity
from micro_ray.errors import MicroError, Unavailable
from micro_ray.network import Refused
from micro_ray.wire.address import Address

__all__ = [
    "Identified",
    "PeerCertificate",
    "Secured",
    "Trusting",
    "peer_certificate",
    "said",
    "shown",
    "shows_none",
    "verified",
]

#: Reasons of OpenSSL that mean: what came is no TLS at all.
_PLAIN = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


class Identified(Protocol):
    """What a dialer dials with."""

    def covers(self, where: Address) -> bool:
        """Whether TCP there is TLS."""
        ...

    async def context(self) -> ssl.SSLContext:
        """For one connection as the caller; it may have to be obtained. Raises MicroError."""
        ...


class Secured:
    """The identity with which a process listens on TCP and dials. It may be exchanged (``use``):
    connections that are open stay, new ones have the new one. Without ``loopback`` TCP within this
    machine stays plain; with ``optional`` callers may come without a certificate.

    Raises Unavailable for a credential that OpenSSL does not take.
    """

    def __init__(
        self, credential: Credential, *, loopback: bool = True, optional: bool = False
    ) -> None:
        self._loopback = loopback
        self.optional = optional
        self.use(credential)

    def covers(self, where: Address) -> bool:
        """Whether TCP there is TLS."""
        return self._loopback or not where.is_local

    async def context(self) -> ssl.SSLContext:
        """For one connection as the caller."""
        return self.client

    def use(self, credential: Credential) -> None:
        server = _context(ssl.PROTOCOL_TLS_SERVER, credential)
        # Nobody resumes a session: a resumed one would show no certificate.
        server.num_tickets = 0
        if self.optional:
            server.verify_mode = ssl.CERT_OPTIONAL
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, credential)
        self.server = server


class Trusting:
    """Dials without an identity, only those that show a certificate which is trusted. Raises
    Unavailable for what are no certificates."""

    def __init__(self, trusted: bytes, *, loopback: bool = True) -> None:
        self._loopback = loopback
        self.use(trusted)

    def use(self, trusted: bytes) -> None:
        self._client = _unnamed(ssl.PROTOCOL_TLS_CLIENT)
        if not trusted:
            return  # then nobody is
        try:
            self._client.load_verify_locations(cadata=trusted.decode("ascii"))
        except (OSError, ValueError) as error:
            raise Unavailable("wire", f"not certificates to trust: {error}") from None

    def covers(self, where: Address) -> bool:
        """Whether TCP there is TLS."""
        return self._loopback or not where.is_local

    async def context(self) -> ssl.SSLContext:
        """For one connection."""
        return self._client


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """What a peer has proved. ``ends`` is of the wall clock, ``life`` in seconds."""

    identity: Identity
    ends: float
    life: float

    @property
    def left(self) -> float:
        """Seconds that it is still valid, at least 0."""
        return max(0.0, self.ends - time.time())


def shows_none(transport: asyncio.BaseTransport) -> bool:
    """Whether a peer has shown no certificate."""
    return not transport.get_extra_info("peercert")


async def shown(identity: Identified, address: str) -> ssl.SSLContext:
    """What to dial an address with. Raises Refused when there is nothing."""
    try:
        return await identity.context()
    except MicroError as error:
        raise Refused("wire", f"no identity to call {address} with: {error.detail}") from None


def peer_certificate(transport: asyncio.BaseTransport) -> PeerCertificate:
    """Raises Refused when the peer has none (it was verified already that it is good) or it
    does not say who the peer is."""
    given = transport.get_extra_info("peercert")
    if not given:
        raise Refused("wire", "the peer has shown no certificate")
    names = [value for _, value in given.get("subjectAltName", ())]
    if len(names) != 1:
        raise Refused("wire", f"the peer's certificate has {len(names)} names; one is wanted")
    try:
        identity = Identity.parse(names[0])
    except MicroError as error:
        raise Refused("wire", f"the peer's certificate: {error.detail}") from None
    ends = float(ssl.cert_time_to_seconds(given["notAfter"]))
    begins = float(ssl.cert_time_to_seconds(given["notBefore"]))
    return PeerCertificate(identity=identity, ends=ends, life=ends - begins)


def verified(
    transport: asyncio.BaseTransport, address: str, service: str, namespace: str
) -> PeerCertificate:
    """The certificate of a node that was dialled, if it is that of who was meant ("": anybody).
    Raises Refused: whoever has a certificate may answer for himself, and for nobody else."""
    peer = peer_certificate(transport)
    found = peer.identity
    if service not in ("", found.service) or namespace not in ("", found.namespace):
        wanted = f"{service or 'a service'} of {namespace or 'any namespace'}"
        raise Refused("wire", f"{found.service} of {found.namespace} is at {address}, not {wanted}")
    return peer


def said(error: BaseException) -> str:
    """What went wrong between two that shake hands, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason in _PLAIN:
            return "it does not speak TLS: it has no identity, or is no node of this platform"
        if "NO_CERTIFICATE" in reason or "DID_NOT_RETURN" in reason:
            return "it has shown no certificate"
        if "ALERT" in reason:
            return f"it does not accept our certificate ({reason.lower().replace('_', ' ')})"
        return f"no TLS with it ({reason.lower().replace('_', ' ') or error})"
    return str(error) or type(error).__name__


def _unnamed(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are of nodes, not of hosts: see peer_certificate
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context(protocol: int, credential: Credential) -> ssl.SSLContext:
    context = _unnamed(protocol)
    issued = credential.issued
    # ssl reads keys from files only; this one is memory, and never on a disk.
    memory = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(credential.key + b"\n" + issued.certificate)
        path = f"/proc/self/fd/{memory}"
        context.load_cert_chain(path)
        context.load_verify_locations(cadata=issued.trusted.decode("ascii"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Unavailable("wire", f"an identity that cannot be used: {error}") from None
    finally:
        os.close(memory)
    return context
