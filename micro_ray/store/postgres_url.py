"""The URL of a PostgreSQL or CockroachDB store, as what libpq wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from micro_ray.errors import BadRequest

__all__ = ["SCHEMES", "Target", "parse"]

SCHEMES = ("postgres", "postgresql", "cockroach", "cockroachdb")
#: Said to libpq where the URL says nothing: a peer that vanished without a word is noticed.
_DEFAULTS = {
    "application_name": "micro-ray store",
    "connect_timeout": "5",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    # A libpq that knows Kerberos would look for a ticket before each connection: time for nothing,
    # in libraries that are suspect in a process with threads or one that has forked. Who encrypts
    # by it says so in the URL.
    "gssencmode": "disable",
}

_FORM = (
    "not postgres://user:password@host:port/database?parameters; special characters of user and "
    "password are percent-encoded"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``options`` go to libpq and hold the password; ``name`` is for people and does not."""

    name: str
    user: str
    options: Mapping[str, str] = field(repr=False)


def parse(url: str) -> Target:
    """``postgres://user:password@host:port,host:port/database?sslmode=verify-full&...``, with any
    parameter of libpq; ``cockroach://`` the same. Raises BadRequest that never shows the URL."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest:
        raise BadRequest("settings", f"store.url: {scheme[:20]!r} is none of {', '.join(SCHEMES)}")
    try:
        given = conninfo_to_dict(f"postgresql://{rest}")
    except psycopg.Error as error:
        raise BadRequest("settings", f"store.url: {_what(error, rest)}") from None
    ports = str(given.get("port", "")).split(",")
    split = any("@" in str(given.get(name, "")) for name in ("host", "dbname"))
    if split or not all(port.isdigit() or not port for port in ports):
        # Part of a password fell into another field, and would be shown as that.
        raise BadRequest("settings", f"store.url: {_FORM}")
    options = {name: str(value) for name, value in given.items() if value is not None}
    hosts = options.get("host", "")
    if "," in hosts:
        # One of several may be a standby, which cannot be written.
        options.setdefault("target_session_attrs", "read-write")
    places = [
        f"{host or 'localhost'}:{ports[min(at, len(ports) - 1)] or 5432}"
        for at, host in enumerate(hosts.split(","))
    ]
    database = options.get("dbname", "")
    return Target(
        name=f"{scheme}://{','.join(places)}/{database}",
        user=options.get("user", ""),
        options={**_DEFAULTS, **options, "client_encoding": "utf8"},
    )


def _what(error: psycopg.Error, rest: str) -> str:
    """libpq's own words may quote a part of the password when the URL falls apart at it, so only
    those about a parameter are passed on, and only when it is one."""
    text = str(error).strip().splitlines()[0]
    query = urlsplit(f"//{rest}").query
    if text.startswith("invalid URI query parameter") and text.split('"')[1] in query:
        return text
    return _FORM
