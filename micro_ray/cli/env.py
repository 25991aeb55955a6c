"""env: how to reach the platform from elsewhere."""

from __future__ import annotations

import json
import shlex

import click

from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, output
from micro_ray.cli.session import Session
from micro_ray.errors import Unavailable

__all__ = ["env"]


@click.group(cls=Subcommands, invoke_without_command=True)
@output()
@click.pass_context
def env(ctx: click.Context) -> None:
    """Show how to reach the platform: which settings are in force here."""
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    settings, boot = session.settings, session.bootstrap
    proxy = settings.proxy
    rows = {
        "state": str(settings.state),
        "run": str(settings.run),
        "namespace": session.namespace,
        "api": f"http://{settings.api.host}:{settings.api.port}",
        "proxy": f"grpc://{proxy.host}:{proxy.port}" if proxy.port else "none",
        "registry": ",".join(boot.registry),
        "router": ",".join(boot.routers),
    }
    if session.output == "json":
        as_json(rows)
    else:
        columns(("NAME", "VALUE"), list(rows.items()))


@env.command()
@output()
@click.pass_obj
def ray(session: Session) -> None:
    """Shell lines with which Python reaches the platform's Ray: `eval "$(micro env ray)"`."""
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
