"""Where NATS is, and how a platform comes in: the URL of a setting.

``nats://user:password@a:4222,b:4222,c``; ``tls://`` for servers whose certificate is checked and
from which nothing is taken in clear; a user without a password is a token. What is not a letter,
digit or ``-._~`` in them is percent-encoded.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from micro_ray.errors import BadRequest

__all__ = ["Place", "parse", "tls_context"]

PORT = 4222

_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:(\d{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``servers`` are ``host:port``. What is secret is not shown."""

    servers: tuple[str, ...]
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    #: What else nats-py needs to come in (:mod:`~micro_ray.nats_users`).
    login: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def urls(self) -> list[str]:
        """The servers, as nats-py takes them."""
        scheme = "tls" if self.tls else "nats"
        return [f"{scheme}://{server}" for server in self.servers]

    @property
    def options(self) -> dict[str, Any]:
        """How nats-py comes in."""
        options = dict(self.login)
        if self.user or self.password:
            options |= {"user": self.user, "password": self.password}
        if self.token:
            options["token"] = self.token
        return options

    def __str__(self) -> str:
        return ", ".join(self.servers)


def parse(url: str, setting: str = "broker.url") -> Place:
    """Raises BadRequest that says what is wrong with the setting, without what is secret."""
    try:
        return _parse(url)
    except ValueError as error:
        raise BadRequest(
            "settings",
            f"{setting}: {error}; write nats://user:password@host:4222,host:4222, or tls://...",
        ) from None


def _parse(url: str) -> Place:
    scheme, sign, rest = url.partition("://")
    if not sign or scheme not in ("nats", "tls"):
        raise ValueError(
            f"scheme {scheme[:20]!r} is not nats or tls" if sign else "it has no '://'"
        )
    known, at, hosts = rest.rpartition("@")
    hosts = hosts.rstrip("/")
    servers = tuple(_server(host.strip()) for host in hosts.split(","))
    user, colon, password = known.partition(":")
    user, password = unquote(user), unquote(password)
    if at and not user:
        raise ValueError("there is '@', but no user before it")
    return Place(
        servers=servers,
        tls=scheme == "tls",
        user=user if colon else "",
        password=password,
        token="" if colon else user,
    )


def _server(text: str) -> str:
    found = _HOST.fullmatch(text)
    if not text or found is None:
        # What follows a colon may be a password whose '@' was forgotten.
        shown = text.partition(":")[0][:80]
        raise ValueError(
            f"server {shown!r} is not like host:port" if text else "a server is missing"
        )
    port = int(found[4] or PORT)
    if not 0 < port < 65536:
        raise ValueError(f"server {found[1]!r} has no port from 1 to 65535")
    return f"{found[1]}:{port}"


def tls_context(
    authority: str = "", certificate: str = "", key: str = "", *, noun: str = "broker"
) -> ssl.SSLContext:
    """What the servers' certificates are checked against (a file; blank: what the system trusts),
    and the certificate to show them. Raises BadRequest that names the noun's setting."""
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except (OSError, ValueError) as error:
        raise BadRequest("settings", f"{noun}.tls_ca: {authority}: {error}") from None
    if certificate or key:
        try:
            context.load_cert_chain(certificate, key or None)
        except (OSError, ValueError) as error:
            raise BadRequest(
                "settings", f"{noun}.tls_cert, {noun}.tls_key: {certificate}, {key}: {error}"
            ) from None
    return context
