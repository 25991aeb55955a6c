"""certs: list, root, renew."""

from __future__ import annotations

import time
from typing import Any

import click

from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, output
from micro_ray.cli.session import Session

__all__ = ["certs"]

_STATES = {
    "signs": "signs",
    "next": "next: trusted, signs when everybody trusts it",
    "former": "former: trusted while what it has signed lives",
}


@click.group(cls=Subcommands)
def certs() -> None:
    """Say who has a certificate, and replace the key of the authority that signs them.

    Processes get and renew theirs by themselves.
    """


@certs.command("list")
@output()
@click.pass_obj
def list_(session: Session) -> None:
    """Print the certificates that are alive."""
    found = session.call("certs", "Certs.List", {})
    if session.output == "json":
        as_json(found)
        return
    now = time.time()
    columns(
        ("NAMESPACE", "SERVICE", "NODE", "ENDS IN", "SIGNED BY"),
        [
            (c["namespace"], c["service"], c["node"], _left(c["ends"] - now), c["root"][:12])
            for c in found
        ],
    )


@certs.command()
@output()
@click.pass_obj
def root(session: Session) -> None:
    """Print the authority's keys: which signs, and which are trusted."""
    _print(session, session.call("certs", "Certs.Roots", {}))


@certs.command()
@output()
@click.pass_obj
def renew(session: Session) -> None:
    """Begin to replace the authority's key.

    The new one is published first. It signs when nobody is alive who does not trust it, and the
    former is trusted until nothing that it has signed is alive: each takes some seconds, or the
    lifetime of a certificate when a process has died and left one.
    """
    _print(session, session.call("certs", "Certs.Renew", {}))


def _print(session: Session, roots: dict[str, Any]) -> None:
    if session.output == "json":
        as_json(roots)
        return
    now = time.time()
    columns(
        ("ID", "ENDS IN", ""),
        [(r["id"][:12], _left(r["ends"] - now), _STATES[r["state"]]) for r in roots["roots"]],
    )


def _left(seconds: float) -> str:
    """A span of time in its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
