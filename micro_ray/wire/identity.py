"""Mutual TLS on TCP: what a process shows, whom it believes, and who the other side is."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from dataclasses import dataclass

from micro_ray.certs import Credential, Identity
from micro_ray.errors import MicroError, Unavailable
from micro_ray.network import Refused

__all__ = ["PeerCertificate", "Secured", "peer_certificate", "said", "verified"]

#: Reasons of OpenSSL that mean: what came is no TLS at all.
_PLAIN = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


class Secured:
    """The identity with which a process listens on TCP and dials. It may be exchanged (``use``):
    connections that are open stay, new ones have the new one.

    Raises Unavailable for a credential that OpenSSL does not take.
    """

    def __init__(self, credential: Credential) -> None:
        self.use(credential)

    def use(self, credential: Credential) -> None:
        server = _context(ssl.PROTOCOL_TLS_SERVER, credential)
        # Nobody resumes a session: a resumed one would show no certificate.
        server.num_tickets = 0
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, credential)
        self.server = server


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


def peer_certificate(transport: asyncio.BaseTransport) -> PeerCertificate:
    """Raises Refused when the peer has none (it was verified already that it is good) or it
    does not say who the peer is."""
    shown = transport.get_extra_info("peercert")
    if not shown:
        raise Refused("wire", "the peer has shown no certificate")
    names = [value for _, value in shown.get("subjectAltName", ())]
    if len(names) != 1:
        raise Refused("wire", f"the peer's certificate has {len(names)} names; one is wanted")
    try:
        identity = Identity.parse(names[0])
    except MicroError as error:
        raise Refused("wire", f"the peer's certificate: {error.detail}") from None
    ends = float(ssl.cert_time_to_seconds(shown["notAfter"]))
    begins = float(ssl.cert_time_to_seconds(shown["notBefore"]))
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


def _context(protocol: int, credential: Credential) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are of nodes, not of hosts: see peer_certificate
    context.verify_mode = ssl.CERT_REQUIRED
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
