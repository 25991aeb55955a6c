"""run, update, kill, status, logs."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from micro_ray.cli.arguments import fraction, pairs
from micro_ray.cli.completion import workloads
from micro_ray.cli.exits import Failed, Usage
from micro_ray.cli.output import ago, as_json, bytes_out, columns, json_line, output, visible
from micro_ray.cli.session import Session
from micro_ray.errors import Conflict, NotFound

__all__ = ["kill", "logs", "run", "status", "update"]

SERVICE = "runtime"
#: Lines that are looked through, where logs are followed on, for those that came meanwhile.
BEFORE = 1000

#: A source elsewhere: https://..., git@host:..., or github.com/...
_REMOTE = re.compile(r"[a-z+]+://.*|[\w.-]+@[\w.-]+:.*|[\w-]+(\.[\w-]+)+/.+", re.ASCII)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--no-wait", is_flag=True, help="Do not wait until it runs."),
        click.option("--metadata", multiple=True, metavar="K=V", help="Metadata."),
        click.option("--memory", type=click.IntRange(0), help="Bytes of memory per copy."),
        click.option(
            "--gpu", type=float, callback=fraction, help="GPUs per copy, may be a fraction."
        ),
        click.option(
            "--cpu", type=float, callback=fraction, help="Cores per copy, may be a fraction."
        ),
        click.option("--env", "-e", multiple=True, metavar="K=V", help="A variable."),
        click.option("--command", "line", default="", help="Run this command line instead."),
        click.option("-r", "--replicas", type=click.IntRange(0), help="How many copies."),
        click.option("--name", default="", help="Name (default: of the folder)."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("source", default="")
@_options
@click.option("--version", default="", help="Version it is registered as (default: latest).")
@click.option("--driver", type=click.Choice(["ray", "process"]), help="How it runs.")
@output()
@click.pass_obj
def run(
    session: Session,
    /,
    source: str,
    name: str,
    version: str,
    driver: str | None,
    no_wait: bool,
    **options: Any,
) -> None:
    """Run a service from the folder SOURCE (default: this one), or a command.

    A Python service (main.py) runs as a Ray actor, a command as a local process; a command without
    SOURCE needs a name. SOURCE@VERSION names the version. What runs already is updated: its source,
    and what else is given.
    """
    folder, at_version = _folder(source)
    changes = _changes(options)
    command = changes.get("command", [])
    if command and not source and not name:
        raise Usage("cli", "a command without a folder has no name; give it one with --name")
    wanted = name or folder.resolve().name.lower()
    version = at_version or version
    old = next((s["workload"] for s in _read(session) if s["workload"]["name"] == wanted), None)
    if source or not command:
        _checked(folder, bool(command or (old and old["command"])))
        changes |= {"digest": _upload(session, folder), "source": source or "."}
    if old is not None:
        for what, given in (("version", version), ("driver", driver)):
            if given and given != old[what]:
                raise Conflict(
                    "runtime",
                    f"{wanted} runs with {what} {old[what]}, not {given}; "
                    f"kill it first, or run this one under another --name",
                )
        session.call(SERVICE, "Runtime.Update", {"name": wanted, "changes": changes})
    else:
        workload = {
            "name": wanted,
            "version": version or "latest",
            "driver": driver or ("process" if command else session.settings.runtime.driver),
            **changes,
        }
        session.call(SERVICE, "Runtime.Create", workload)
    _follow(session, wanted, no_wait)


@click.command()
@click.argument("source", shell_complete=workloads)
@_options
@output()
@click.pass_obj
def update(session: Session, /, source: str, name: str, no_wait: bool, **options: Any) -> None:
    """Change a running service, or restart it when nothing is changed.

    SOURCE is its name, or a folder with its new source (./NAME for one that is named as what runs).
    """
    changes = _changes(options)
    running = {status["workload"]["name"]: status["workload"] for status in _read(session)}
    wanted, _, version = source.partition("@")
    if wanted not in running or name:
        folder, version = _folder(source)
        wanted = name or folder.resolve().name.lower()
        if wanted in running:
            _checked(folder, bool(changes.get("command") or running[wanted]["command"]))
            changes |= {"digest": _upload(session, folder), "source": source}
        elif not folder.is_dir():
            there = ", ".join(sorted(running)) or "nothing"
            raise NotFound("runtime", f"{source!r} neither runs nor is a folder; there is {there}")
    if version and wanted in running and version != running[wanted]["version"]:
        there = running[wanted]["version"]
        raise NotFound("runtime", f"{wanted} runs as version {there}, not {version}")
    session.call(SERVICE, "Runtime.Update", {"name": wanted, "changes": changes})
    _follow(session, wanted, no_wait)


@click.command()
@click.argument("name", shell_complete=workloads)
@output()
@click.pass_obj
def kill(session: Session, name: str) -> None:
    """Stop a service and forget it. NAME may be `.`, the service of this folder."""
    wanted, _, version = _here(name).partition("@")
    if version:
        (status,) = session.call(SERVICE, "Runtime.Read", {"name": wanted})
        there = status["workload"]["version"]
        if there != version:
            raise NotFound("runtime", f"{wanted} runs as version {there}, not {version}")
    session.call(SERVICE, "Runtime.Delete", {"name": wanted}, timeout=60)


@click.command()
@click.argument("name", default="", shell_complete=workloads)
@output()
@click.pass_obj
def status(session: Session, name: str) -> None:
    """Show what runs, and why it does not. NAME may be `.`, the service of this folder."""
    rows = session.call(SERVICE, "Runtime.Read", {"name": _here(name)})
    if session.output == "json":
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
                click.echo(f"\n{visible(row['error'], chr(10))}")
            if row["retry_in"]:
                click.echo(f"next attempt in {row['retry_in']:.1f} s")


def _row(row: dict[str, Any]) -> list[str]:
    workload = row["workload"]
    metadata = dict(workload["metadata"])
    if row["restarts"]:
        metadata["restarts"] = row["restarts"]
    if row["error"]:
        metadata["error"] = row["error"].strip().rpartition("\n")[2][:100]
    source = workload["source"] or next(iter(workload["command"]), "")
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
@click.argument("name", shell_complete=workloads)
@click.option("-n", "--lines", type=click.IntRange(0, 10_000), default=15, help="From the end.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@output()
@click.pass_obj
def logs(session: Session, name: str, lines: int, follow: bool) -> None:
    """Show the logs of a service, of all its replicas. NAME may be `.`.

    With `-o json` each line is an object with its time, replica and stream.
    """
    request = {"name": _here(name), "tail": lines, "follow": follow}
    seen = 0.0

    def onward(line: Any) -> dict[str, int]:
        nonlocal seen
        seen = 0.0 if line is None else line["at"]
        return {"tail": BEFORE if seen else 0}

    for line in session.follow(SERVICE, "Runtime.Logs", request, onward):
        if seen and line["at"] <= seen:
            continue  # it was there before the stream was asked for anew
        seen = 0.0
        if session.output == "json":
            json_line(line)
        else:
            bytes_out(line["text"].encode("utf-8", "replace"), b"\n")


# -- parts -----------------------------------------------------------------------------------------


def _read(session: Session) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = session.call(SERVICE, "Runtime.Read")
    return rows


def _here(name: str) -> str:
    """``.`` is the service of this folder."""
    return Path.cwd().name.lower() if name == "." else name


def _folder(source: str) -> tuple[Path, str]:
    """The folder that SOURCE names, and the version after its ``@``. Raises Usage for what is
    elsewhere."""
    if Path(source).exists():
        return Path(source), ""
    if _REMOTE.fullmatch(source):
        raise Usage(
            "cli",
            f"{source} is not on this machine; sources from git are not supported yet: "
            "clone it and run the folder",
        )
    path, _, version = source.rpartition("@") if "@" in source else (source, "", "")
    return Path(path or ".").expanduser(), version


def _checked(folder: Path, command: bool) -> None:
    """Refuse what cannot run before it is sent anywhere."""
    if folder.is_dir() and not command and not (folder / "main.py").is_file():
        raise Usage(
            "cli",
            f"no main.py in {folder.resolve()}; a Python service begins there, "
            "anything else is run with --command",
        )


def _upload(session: Session, folder: Path) -> str:
    from micro_ray.runtime.source import pack
    from micro_ray.wire.runtime import RemoteRuntime

    archive = pack(folder, limit=session.settings.runtime.max_source)
    return session.client.run(lambda client: RemoteRuntime(client).upload(archive))


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """What was given, and nothing else."""
    changes: dict[str, Any] = {
        key: options[key]
        for key in ("replicas", "cpu", "gpu", "memory")
        if options[key] is not None
    }
    for key in ("env", "metadata"):
        if options[key]:
            changes[key] = pairs(options[key], f"--{key}")
    if options["line"]:
        try:
            changes["command"] = shlex.split(options["line"])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--command") from None
        if not changes["command"]:
            raise click.BadParameter("it is blank", param_hint="--command")
    return changes


def _follow(session: Session, name: str, no_wait: bool) -> None:
    """Show the progress until it runs. Raises Failed with the reason when it does not."""
    if not no_wait:
        begun = time.monotonic()
        state = text = ""
        for step in session.stream(SERVICE, "Runtime.Progress", {"name": name}):
            if step["state"] == state and step["text"] == text:
                continue
            state, text = step["state"], step["text"]
            if state != "error" and session.output != "json":
                click.echo(f"{time.monotonic() - begun:5.1f} s  {visible(text)}")
        if state == "error":
            raise Failed("runtime", text)
        if state not in ("running", "stopped"):
            raise Failed("runtime", f"{name} was ended before it ran")
    if session.output == "json":
        as_json(session.call(SERVICE, "Runtime.Read", {"name": name})[0])
