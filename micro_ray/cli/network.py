"""network: nodes, routes, services, graph."""

from __future__ import annotations

import click

from micro_ray.cli.output import as_json, columns
from micro_ray.cli.session import Session

__all__ = ["network"]


@click.group()
def network() -> None:
    """Nodes, routes and graph."""


@network.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def nodes(session: Session, output: str | None) -> None:
    """Every node with its address."""
    rows = session.call("network", "Network.Nodes")
    if (output or session.output) == "json":
        as_json(rows)
        return
    columns(
        ("ID", "SERVICE", "ADDRESS", "CALLS", "ERRORS"),
        [(r["id"], r["service"], r["address"], r["calls"], r["errors"]) for r in rows],
    )


@network.command()
@click.option("--service", default="", help="Of one service.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def routes(session: Session, service: str, output: str | None) -> None:
    """Every way to a node."""
    rows = session.call("network", "Network.Routes", {"service": service})
    if (output or session.output) == "json":
        as_json(rows)
        return
    columns(
        ("SERVICE", "VERSION", "ADDRESS", "NETWORK", "METRIC", "WEIGHT", "LINK"),
        [
            (r["service"], r["version"], address, r["network"], r["metric"], r["weight"], r["link"])
            for r in rows
            for address in r["addresses"]
        ],
    )


@network.command("services")
@click.pass_obj
def names(session: Session) -> None:
    """The names that can be called."""
    for name in session.call("network", "Network.Services"):
        click.echo(name)


@network.command()
@click.pass_obj
def graph(session: Session) -> None:
    """Services with their nodes, as JSON."""
    as_json(session.call("network", "Network.Graph"))
