"""env: the platforms that commands go to, and how this machine's is reached from elsewhere."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, output
from micro_ray.cli.session import Session
from micro_ray.errors import Unavailable

if TYPE_CHECKING:
    from micro_ray.sdk.environments import Environments

__all__ = ["env"]


@click.group(cls=Subcommands, invoke_without_command=True)
@output()
@click.pass_context
def env(ctx: click.Context) -> None:
    """Show which platform commands go to, and by which settings."""
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    where = session.environment
    rows = {"environment": where.name}
    rows |= _local(session) if where.is_local else _remote(session)
    if session.output == "json":
        as_json(rows)
    else:
        columns(("NAME", "VALUE"), list(rows.items()))


def _local(session: Session) -> dict[str, str]:
    settings, boot = session.settings, session.bootstrap
    proxy = settings.proxy
    return {
        "state": str(settings.state),
        "run": str(settings.run),
        "namespace": session.namespace,
        "api": f"http://{settings.api.host}:{settings.api.port}",
        "proxy": f"grpc://{proxy.host}:{proxy.port}" if proxy.port else "none",
        "registry": ",".join(boot.registry),
        "router": ",".join(boot.routers),
    }


def _remote(session: Session) -> dict[str, str]:
    where, known = session.environment, session.identity()
    return {
        "proxy": where.address,
        "ca": where.ca or "of the system" if where.address.startswith("grpcs:") else "none",
        "namespace": session.namespace,
        "user": "none" if known is None else f"{known['id']} of {known['namespace']}",
    }


def _environments(session: Session) -> Environments:
    from micro_ray.sdk.environments import Environments

    return Environments(session.settings)


def _chosen(session: Session) -> str:
    """The name of the one that is in force, whether there is such a one or not."""
    return session.named or session.settings.env or _environments(session).current


@env.command("list")
@output()
@click.pass_obj
def listing(session: Session) -> None:
    """List the environments; a star marks the one that commands go to."""
    chosen = _chosen(session)
    rows = [
        {"name": e.name, "address": e.address, "ca": e.ca, "current": e.name == chosen}
        for e in _environments(session).known()
    ]
    if session.output == "json":
        as_json(rows)
        return
    columns(
        ("", "NAME", "ADDRESS"),
        [("*" if r["current"] else "", r["name"], r["address"] or "this machine") for r in rows],
    )


@env.command()
@output()
@click.pass_obj
def get(session: Session) -> None:
    """Print the name of the environment that commands go to."""
    if session.output == "json":
        as_json(session.environment.name)
    else:
        click.echo(session.environment.name)


@env.command()
@click.argument("name")
@click.argument("address")
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    help="File of the certificates (PEM) to trust (default: those of the system).",
)
@click.pass_obj
def add(session: Session, name: str, address: str, ca: Path | None) -> None:
    """Add the platform whose gRPC door is at ADDRESS: host:port or grpc://host:port, with TLS
    grpcs://host:port."""
    made = _environments(session).add(name, address, ca)
    if made.is_open:
        click.echo(
            f"passwords and tokens go to {made.address} unencrypted; use grpcs:// where others may "
            "be on the way",
            err=True,
        )


@env.command("set")
@click.argument("name")
@click.pass_obj
def use(session: Session, name: str) -> None:
    """Let commands go to the environment NAME from now on."""
    _environments(session).use(name)


@env.command("del")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Forget the environment NAME, and who you are there."""
    _environments(session).remove(name)


@env.command()
@output()
@click.pass_obj
def ray(session: Session) -> None:
    """Shell lines with which Python reaches the platform's Ray: `eval "$(micro env ray)"`."""
    session.here("Ray is reached on the machine of its server only")
    path = session.settings.state / "ray.json"
    try:
        known = json.loads(path.read_text())
        variables = {"RAY_ADDRESS": known["RAY_ADDRESS"], **known}
    except FileNotFoundError:
        raise Unavailable(
            "client", f"no micro server at {session.settings.state}; start one with `micro server`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise Unavailable(
            "client", f"{path} cannot be read; stop `micro server` and start it again"
        ) from None
    if session.output == "json":
        as_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(str(value))}")
