"""run, update, kill, status, logs."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from micro_ray.cli.output import ago, as_json, columns
from micro_ray.cli.session import Session

__all__ = ["kill", "logs", "run", "status", "update"]

SERVICE = "runtime"


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        [
            click.option("--name", default="", help="Name (default: of the folder)."),
            click.option("-r", "--replicas", type=int, help="How many copies."),
            click.option("--command", "line", default="", help="Run this command line instead."),
            click.option("--env", "-e", multiple=True, metavar="K=V", help="A variable."),
            click.option("--cpu", type=float, help="Cores per copy, may be a fraction."),
            click.option("--gpu", type=float, help="GPUs per copy, may be a fraction."),
            click.option("--memory", type=int, help="Bytes of memory per copy."),
            click.option("--metadata", multiple=True, metavar="K=V", help="Metadata."),
            click.option("--no-wait", is_flag=True, help="Do not wait until it runs."),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("source", default="")
@_options
@click.option("--version", default="latest", help="Version it is registered as.")
@click.option("--driver", type=click.Choice(["ray", "process"]), help="How it runs.")
@click.pass_obj
def run(
    session: Session,
    /,
    source: str,
    name: str,
    version: str,
    driver: str | None,
    **options: Any,
) -> None:
    """Run a service from the folder SOURCE (default: this one), or a command.

    A Python service (main.py) runs as a Ray actor, a command as a local process.
    """
    folder, at, at_version = _source(source)
    command = shlex.split(options["line"])
    digest = ""
    if not command or source:
        digest = _upload(session, folder)
    workload = {
        "name": name or at or folder.resolve().name.lower(),
        "version": at_version or version,
        "source": source or ("." if digest else ""),
        "digest": digest,
        "command": command,
        "driver": driver or ("process" if command else "ray"),
        **_changes(options, update=False),
    }
    existing = {s["workload"]["name"] for s in session.call(SERVICE, "Runtime.Read")}
    if workload["name"] in existing:
        # Running what runs already is an update, as people expect of `micro run .`.
        changes = {k: v for k, v in workload.items() if k not in ("name", "version", "driver")}
        _update(session, workload["name"], changes, options["no_wait"])
        return
    session.call(SERVICE, "Runtime.Create", workload)
    if not options["no_wait"]:
        _follow(session, str(workload["name"]))


@click.command()
@click.argument("source")
@_options
@click.pass_obj
def update(session: Session, /, source: str, name: str, **options: Any) -> None:
    """Change a running service, or restart it when nothing is changed.

    SOURCE is its name, or a folder with its new source.
    """
    changes = _changes(options, update=True)
    names = [s["workload"]["name"] for s in session.call(SERVICE, "Runtime.Read")]
    wanted = name or source.partition("@")[0]
    if wanted not in names or Path(source).is_dir():
        folder = Path(source)
        wanted = name or folder.resolve().name.lower()
        changes |= {"digest": _upload(session, folder), "source": source}
    if options["line"]:
        changes["command"] = shlex.split(options["line"])
    _update(session, wanted, changes, options["no_wait"])


def _update(session: Session, name: str, changes: dict[str, Any], no_wait: bool) -> None:
    session.call(SERVICE, "Runtime.Update", {"name": name, "changes": changes})
    if not no_wait:
        _follow(session, name)


@click.command()
@click.argument("name")
@click.pass_obj
def kill(session: Session, name: str) -> None:
    """Stop a service and forget it. NAME may be `.`, the service of this folder."""
    if name == ".":
        name = Path.cwd().name.lower()
    session.call(SERVICE, "Runtime.Delete", {"name": name.partition("@")[0]}, timeout=60)


@click.command()
@click.argument("name", default="")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def status(session: Session, name: str, output: str | None) -> None:
    """Show what runs, and why it does not."""
    rows = session.call(SERVICE, "Runtime.Read", {"name": name})
    if (output or session.output) == "json":
        as_json(rows)
        return
    if not rows:
        return
    columns(
        ("NAME", "VERSION", "SOURCE", "STATUS", "REPLICAS", "BUILD", "UPDATED", "METADATA"),
        [_row(row) for row in rows],
    )
    if name:
        for row in rows:
            if row["error"]:
                click.echo(f"\n{row['error']}")
            if row["retry_in"]:
                click.echo(f"next attempt in {row['retry_in']:.1f} s")


def _row(row: dict[str, Any]) -> list[str]:
    workload = row["workload"]
    metadata = dict(workload["metadata"])
    if row["restarts"]:
        metadata["restarts"] = row["restarts"]
    if row["error"]:
        metadata["error"] = row["error"].strip().rpartition("\n")[2][:100]
    source = workload["source"] or workload["command"][0]
    return [
        workload["name"],
        workload["version"],
        source.replace(" ", "_"),
        row["state"],
        f"{row['ready']}/{workload['replicas']}",
        workload["digest"][:7],
        ago(workload["updated"]),
        ", ".join(f"{k}={v}" for k, v in metadata.items()),
    ]


@click.command()
@click.argument("name")
@click.option("-n", "--lines", default=15, help="Lines from the end.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def logs(session: Session, name: str, lines: int, follow: bool, output: str | None) -> None:
    """Show the logs of a service, of all its replicas."""
    request = {"name": name, "tail": lines, "follow": follow}
    for line in session.stream(SERVICE, "Runtime.Logs", request):
        if (output or session.output) == "json":
            as_json(line)
        else:
            click.echo(line["text"])


def _source(source: str) -> tuple[Path, str, str]:
    """Folder, name and version that SOURCE says."""
    path, _, version = source.partition("@")
    folder = Path(path or ".")
    name = folder.name.lower() if path not in ("", ".", "..") else ""
    return folder, name, version


def _upload(session: Session, folder: Path) -> str:
    from micro_ray.runtime.source import pack
    from micro_ray.wire.runtime import RemoteRuntime

    archive = pack(folder, limit=session.settings.runtime.max_source)
    return session.client.run(lambda client: RemoteRuntime(client).upload(archive))


def _pairs(rows: tuple[str, ...], option: str) -> dict[str, str]:
    pairs = {}
    for row in rows:
        name, sign, value = row.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{row!r} is not like K=V", param_hint=option)
        pairs[name] = value
    return pairs


def _changes(options: dict[str, Any], *, update: bool) -> dict[str, Any]:
    changes: dict[str, Any] = {
        key: options[key]
        for key in ("replicas", "cpu", "gpu", "memory")
        if options[key] is not None
    }
    for key in ("env", "metadata"):
        if options[key] or not update:
            changes[key] = _pairs(options[key], f"--{key}")
    return changes


def _follow(session: Session, name: str) -> None:
    """Show the progress until it runs (or failed: exit 1)."""
    begun = time.monotonic()
    state = text = ""
    for step in session.stream(SERVICE, "Runtime.Progress", {"name": name}):
        if step["state"] == state and step["text"] == text:
            continue
        state, text = step["state"], step["text"]
        if state != "error":
            click.echo(f"{time.monotonic() - begun:5.1f} s  {text}")
    if state == "error":
        click.echo(text, err=True)
        sys.exit(1)
