"""doctor: what is wrong, and what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import click

from micro_ray.cli.output import as_json, columns, output
from micro_ray.cli.owners import lock_holder, port_holder
from micro_ray.cli.session import Session, answers
from micro_ray.errors import MicroError
from micro_ray.settings import Settings

__all__ = ["doctor"]

#: Name, whether it is good, what was found and what to do.
Row = tuple[str, bool, str]

#: Least free bytes on the disk of the state folder.
DISK = 512 * 2**20
#: The services without which a platform does not work.
PLATFORM = frozenset(
    {"certs", "registry", "router", "store", "broker", "events", "config", "network", "runtime"}
)
#: Those of them that have something behind them to be examined.
BACKENDS = ("certs", "registry", "broker", "store", "events")
#: Seconds that the door has for an answer, and that an examination of a backend may take.
PATIENCE, EXAMINATION = 2.0, 15.0
#: What a client of HTTP/2 says first; the frame, empty here, with which both sides begin.
FIRST = b"\0\0\0\4\0\0\0\0\0"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + FIRST


@click.command()
@output()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Find out what is wrong, and what to do; exit 1 when something is."""
    session: Session = ctx.obj
    rows = list(_checks(session))
    if session.output == "json":
        as_json([{"check": name, "good": good, "text": text} for name, good, text in rows])
    else:
        columns(
            ("CHECK", "", "FOUND"), [(n, "ok" if good else "WRONG", text) for n, good, text in rows]
        )
    if not all(good for _, good, _ in rows):
        ctx.exit(1)


def _checks(session: Session) -> Iterator[Row]:
    yield python(sys.version_info[:3])
    try:
        settings, where = session.settings, session.environment
    except MicroError as error:
        yield ray()
        yield "settings", False, error.detail
        return
    if not where.is_local:
        yield from _elsewhere(session)
        return
    yield ray()
    folder = settings.state
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    yield disk(folder, shutil.disk_usage(folder).free)
    yield state(settings.state, folder)
    yield server(session)
    yield from backends(session)
    yield sockets(settings, session.reached)
    yield door(settings, session.reached)
    if settings.proxy.port:
        yield grpc_door(settings, session.reached)


def _elsewhere(session: Session) -> Iterator[Row]:
    """What can be known of a platform of another machine."""
    where = session.environment
    yield "environment", True, f"{where.name} ({where.address})"
    try:
        known = session.identity()
        missing = PLATFORM - {entry.service for entry in session.entries()}
    except MicroError as error:
        yield "server", False, error.detail
        return
    yield "login", True, "nobody" if known is None else f"{known['id']} of {known['namespace']}"
    yield complete(missing)
    yield from backends(session)
    yield (
        "machine",
        True,
        "ray, disk, folders and ports: run `micro doctor` on that machine",
    )


def complete(missing: Collection[str]) -> Row:
    """Whether the platform has all of its services."""
    if missing:
        names = ", ".join(sorted(missing))
        return "server", False, f"missing: {names}; they come back by themselves within seconds"
    return "server", True, "all platform services"


def python(version: Sequence[int]) -> Row:
    """Whether this Python will do."""
    text = ".".join(map(str, version))
    if (3, 11) <= tuple(version) < (3, 15):
        return "python", True, text
    return "python", False, f"{text}; use Python 3.11 to 3.14 (PYTHON=... ./scripts/setup)"


def ray() -> Row:
    """Whether Ray is installed."""
    try:
        return "ray", True, importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return "ray", False, "not installed; run ./scripts/setup"


def disk(folder: Path, free: int) -> Row:
    """Whether there is room for databases, sources and logs."""
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free > DISK:
        return "disk", True, text
    return "disk", False, f"{text}; make room, or set MICRO_STATE to a folder on another disk"


def state(wanted: Path, folder: Path) -> Row:
    """Whether the state folder can be written; ``folder`` is the part of it that is there."""
    advice = "set MICRO_STATE to a folder that you may write"
    if not folder.is_dir():
        return "state", False, f"{folder} is no folder; {advice}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return "state", True, str(wanted)
    except OSError as error:
        return "state", False, f"{wanted} cannot be written ({error.strerror}); {advice}"


def server(session: Session) -> Row:
    """Whether the platform answers and is complete."""
    try:
        missing = PLATFORM - {entry.service for entry in session.entries()}
    except MicroError as error:
        pid = lock_holder(session.settings.state / "server.lock")
        if pid:
            return (
                "server",
                False,
                f"micro server (pid {pid}) does not answer: it is starting, or hangs; "
                f"wait, or end it (kill {pid}) and start it again",
            )
        return "server", False, error.detail
    return complete(missing)


def backends(session: Session) -> Iterator[Row]:
    """What the platform finds of the servers behind it. When it does not answer, those that hold up
    its start are examined from here."""
    if session.reached:
        for service in BACKENDS:
            try:
                rows = session.call(service, "Debug.Backend", {}, timeout=EXAMINATION)
            except MicroError as error:
                yield service, False, f"cannot be asked for what is behind it: {error.detail}"
            else:
                yield from ((row["check"], row["good"], row["text"]) for row in rows)
        return
    import asyncio

    from micro_ray.actors.backends import examine

    try:
        found = asyncio.run(examine(session.settings))
    except MicroError as error:
        yield "settings", False, error.detail
        return
    yield from ((finding.check, finding.good, finding.text) for finding in found)


def sockets(settings: Settings, up: bool) -> Row:
    """Sockets that a killed server has left: no harm, but they say what happened."""
    dead = [p for p in sorted(settings.run.glob("*.sock")) if not answers(f"unix:{p}")]
    if not dead:
        return "sockets", True, str(settings.run)
    left = f"{len(dead)} left in {settings.run} by processes that were killed"
    return "sockets", True, left if up else f"{left}; no harm, `micro server` takes their place"


def door(settings: Settings, up: bool) -> Row:
    """Whether the HTTP door's port is ours, or free for it."""
    return _port("api", settings.api.host, settings.api.port, up, _is_door)


def grpc_door(settings: Settings, up: bool) -> Row:
    """Whether the gRPC door's port is ours, or free for it."""
    return _port("proxy", settings.proxy.host, settings.proxy.port, up, _is_grpc)


def _port(
    name: str, host: str, port: int, up: bool, ours: Callable[[socket.socket, str], bool]
) -> Row:
    where = f"{host}:{port}"
    try:
        connection = socket.create_connection((host, port), timeout=PATIENCE)
    except OSError:
        if up:
            return name, False, f"nothing answers on {where}; see what `micro server` has said"
        return name, True, f"{where} is free"
    with connection:
        if ours(connection, host):
            return name, True, where
    holder = port_holder(port) or "another program"
    variable = f"MICRO_{name.upper()}_PORT"
    return name, False, f"{where} is taken by {holder}; stop it, or set {variable} to another port"


def _is_door(connection: socket.socket, host: str) -> bool:
    """Whether the one who answers names itself as our door does."""
    said = b""
    with contextlib.suppress(OSError):
        connection.settimeout(PATIENCE)
        connection.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        while len(said) < 8192 and (piece := connection.recv(4096)):
            said += piece
    return b'"micro-ray"' in said


def _is_grpc(connection: socket.socket, host: str) -> bool:
    """Whether the one who answers speaks HTTP/2 at once, as gRPC does: grpc itself would take
    longer to import than everything else here."""
    said = b""
    with contextlib.suppress(OSError):
        connection.settimeout(PATIENCE)
        connection.sendall(PREFACE)
        while len(said) < len(FIRST) and (piece := connection.recv(1024)):
            said += piece
    return said[3:4] == FIRST[3:4] and said[5:9] == FIRST[5:9]
