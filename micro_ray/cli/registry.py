"""services and get."""

from __future__ import annotations

import click

from micro_ray.cli.output import as_json, columns
from micro_ray.cli.session import Session

__all__ = ["get", "services"]


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="With versions, nodes and endpoints.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def services(session: Session, verbose: bool, output: str | None) -> None:
    """List the services that can be called."""
    rows = session.call("registry", "Registry.ListServices")
    if (output or session.output) == "json":
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
        for name in sorted({row["name"] for row in rows}):
            click.echo(name)


@click.group()
def get() -> None:
    """Show a service as it is registered."""


@get.command("service")
@click.argument("name")
@click.pass_obj
def get_service(session: Session, name: str) -> None:
    """The registry's entry of a service, as JSON."""
    as_json(session.call("registry", "Registry.GetService", {"service": name}))
