"""services and get."""

from __future__ import annotations

import click

from micro_ray.cli.completion import service_names
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, lines, output
from micro_ray.cli.session import Session

__all__ = ["get", "services"]


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="With versions, nodes and endpoints.")
@output()
@click.pass_obj
def services(session: Session, verbose: bool) -> None:
    """List the services that can be called."""
    request = {"namespace": session.namespace}
    rows = session.call("registry", "Registry.ListServices", request)
    if session.output == "json":
        as_json(rows)
    elif verbose:
        columns(
            ("NAME", "VERSION", "NODES", "ENDPOINTS"),
            [
                (
                    row["name"],
                    row["version"],
                    len(row["nodes"]),
                    " ".join(endpoint["name"] for endpoint in row["endpoints"]),
                )
                for row in rows
            ],
        )
    else:
        lines(sorted({row["name"] for row in rows}))


@click.group(cls=Subcommands)
def get() -> None:
    """Show a service as it is registered."""


@get.command("service")
@click.argument("name", shell_complete=service_names)
@output(default="json")
@click.pass_obj
def get_service(session: Session, name: str) -> None:
    """The registry's entry of a service, as JSON."""
    request = {"service": name, "namespace": session.namespace}
    as_json(session.call("registry", "Registry.GetService", request))
