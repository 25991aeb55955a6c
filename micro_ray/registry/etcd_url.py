"""Where etcd is: ``etcd://user:password@a:2379,b:2379``, or ``etcds://...`` for TLS."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from micro_ray.errors import BadRequest

__all__ = ["Files", "Place", "Trust", "parse", "trust"]

PORT = 2379
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``endpoints`` are ``host:port``; hosts may be names. What is secret is not shown."""

    endpoints: tuple[str, ...]
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return ", ".join(self.endpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Paths: whom to trust (blank: what the system trusts), and what to show."""

    authority: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What the files hold, as PEM; no ``authority``: what the system trusts."""

    authority: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def parse(url: str) -> Place:
    """Raises BadRequest that says what is wrong, without what is secret."""
    scheme, sign, rest = url.partition("://")
    if not sign or scheme not in ("etcd", "etcds"):
        raise _bad(f"scheme {scheme[:20]!r} is not etcd or etcds" if sign else "it has no '://'")
    known, at, hosts = rest.rpartition("@")
    endpoints = tuple(_endpoint(host.strip()) for host in hosts.rstrip("/").split(","))
    if len(set(endpoints)) < len(endpoints):
        raise _bad("an endpoint is there twice")
    user, _, password = known.partition(":")
    user, password = unquote(user), unquote(password)
    if at and not user:
        raise _bad("there is '@', but no user before it")
    if at and not password:
        raise _bad(f"user {user[:80]!r} has no password")
    return Place(endpoints=endpoints, tls=scheme == "etcds", user=user, password=password)


def _endpoint(text: str) -> str:
    found = _HOST.fullmatch(text)
    if not text or found is None:
        # What follows a colon may be a password whose '@' was forgotten.
        shown = text.partition(":")[0][:80]
        raise _bad(f"endpoint {shown!r} is not like host:port" if text else "a host is missing")
    port = int(found[3] or PORT)
    if not 0 < port < 65536:
        raise _bad(f"endpoint {found[1]!r} has no port from 1 to 65535")
    return f"{found[1]}:{port}"


def _bad(why: str) -> BadRequest:
    return BadRequest(
        "settings",
        f"registry.url: {why}; write etcd://user:password@host:2379,host:2379, or etcds://...",
    )


def trust(files: Files) -> Trust:
    """Read the files. Raises BadRequest that names the setting whose file will not do."""
    try:
        context = ssl.create_default_context(cafile=files.authority or None)
        if files.authority:
            authority: bytes | None = Path(files.authority).read_bytes()
        else:
            system = context.get_ca_certs(binary_form=True)
            authority = "".join(map(ssl.DER_cert_to_PEM_cert, system)).encode() or None
    except (OSError, ValueError) as error:
        raise BadRequest("settings", f"registry.tls_ca: {files.authority}: {error}") from None
    if not (files.certificate or files.key):
        return Trust(authority=authority)
    try:
        context.load_cert_chain(files.certificate, files.key or None)
        certificate = Path(files.certificate).read_bytes()
        key = Path(files.key or files.certificate).read_bytes()
    except (OSError, ValueError) as error:
        raise BadRequest(
            "settings",
            f"registry.tls_cert, registry.tls_key: {files.certificate}, {files.key}: {error}",
        ) from None
    return Trust(authority=authority, certificate=certificate, key=key)
