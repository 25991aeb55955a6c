"""network: nodes, routes, services, graph."""

from __future__ import annotations

import click

from micro_ray.cli.completion import service_names
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, lines, output
from micro_ray.cli.session import Session

__all__ = ["network"]


@click.group(cls=Subcommands)
def network() -> None:
    """Nodes, routes and graph."""


@network.command()
@output()
@click.pass_obj
def nodes(session: Session) -> None:
    """Every node with its address, as the network sees it."""
    rows = session.call("network", "Network.Nodes", {"namespace": session.namespace})
    if session.output == "json":
        as_json(rows)
        return
    columns(
        ("ID", "SERVICE", "ADDRESS", "CALLS", "ERRORS"),
        [(r["id"], r["service"], r["address"], r["calls"], r["errors"]) for r in rows],
    )


@network.command()
@click.option("--service", default="", help="Of one service.", shell_complete=service_names)
@click.option("--address", default="", help="With this address.")
@click.option("--network", "net", default="", help="Of one network.")
@output()
@click.pass_obj
def routes(session: Session, service: str, address: str, net: str) -> None:
    """Every way to a node."""
    request = {"service": service, "namespace": session.namespace}
    rows = [
        row
        for row in session.call("network", "Network.Routes", request)
        if (not address or address in row["addresses"]) and net in ("", row["network"])
    ]
    if session.output == "json":
        as_json(rows)
        return
    columns(
        ("SERVICE", "VERSION", "ADDRESS", "NETWORK", "METRIC", "WEIGHT", "LINK"),
        [
            (r["service"], r["version"], where, r["network"], r["metric"], r["weight"], r["link"])
            for r in rows
            for where in r["addresses"] or [""]
        ],
    )


@network.command("services")
@output()
@click.pass_obj
def names(session: Session) -> None:
    """The names that can be called."""
    found = session.call("network", "Network.Services", {"namespace": session.namespace})
    if session.output == "json":
        as_json(found)
    else:
        lines(found)


@network.command()
@output(default="json")
@click.pass_obj
def graph(session: Session) -> None:
    """Services with their nodes, as JSON."""
    request = {"namespace": session.namespace}
    as_json(session.call("network", "Network.Graph", request))
