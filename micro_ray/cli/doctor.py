"""doctor: what is wrong, and what to do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator

import click

from micro_ray.cli.output import as_json, columns
from micro_ray.cli.session import Session
from micro_ray.errors import MicroError

__all__ = ["doctor"]

Row = tuple[str, bool, str]

#: Least free bytes on the disk of the state folder.
DISK = 512 * 2**20


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_context
def doctor(ctx: click.Context, output: str | None) -> None:
    """Find out what is wrong, and what to do; exit 1 when something is."""
    session: Session = ctx.obj
    rows = list(_checks(session))
    if (output or session.output) == "json":
        as_json([{"check": name, "good": good, "text": text} for name, good, text in rows])
    else:
        columns(
            ("CHECK", "", "FOUND"), [(n, "ok" if good else "WRONG", text) for n, good, text in rows]
        )
    if not all(good for _, good, _ in rows):
        ctx.exit(1)


def _checks(session: Session) -> Iterator[Row]:
    settings = session.settings
    version = ".".join(map(str, sys.version_info[:3]))
    yield "python", (3, 11) <= sys.version_info < (3, 15), version
    yield "ray", True, importlib.metadata.version("ray")
    folder = settings.state if settings.state.exists() else settings.state.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield "disk", free > DISK, f"{free / 2**30:.1f} GiB free at {folder}"
    writable = os.access(folder, os.W_OK)
    yield "state", writable, f"{settings.state}" + ("" if writable else " cannot be written")
    try:
        names = sorted({e.service for e in session.entries()})
        missing = {"registry", "router", "store", "network", "runtime"} - set(names)
        text = f"missing: {', '.join(sorted(missing))}" if missing else "all platform services"
        yield "server", not missing, text
    except MicroError as error:
        yield "server", False, error.detail
    with socket.socket() as probe:
        probe.settimeout(1)
        answers = probe.connect_ex((settings.api.host, settings.api.port)) == 0
    where = f"{settings.api.host}:{settings.api.port}"
    yield "api", answers, where if answers else f"nothing answers on {where}"
