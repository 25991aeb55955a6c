"""health and stats: every node of a service asked for itself."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from micro_ray.cli.output import ago, as_json, columns, size
from micro_ray.cli.session import Session
from micro_ray.errors import MicroError
from micro_ray.sdk.client import AsyncClient

__all__ = ["health", "stats"]


def _ask(session: Session, service: str, endpoint: str) -> list[dict[str, Any]]:
    """The answer of each node, or its error."""
    routes = session.call("network", "Network.Routes", {"service": service})
    if not routes:
        session.call("registry", "Registry.GetService", {"service": service})  # says what is near

    async def ask(client: AsyncClient) -> list[dict[str, Any]]:
        async def one(route: dict[str, Any]) -> dict[str, Any]:
            try:
                answer = await client.call(service, endpoint, {}, node=route["id"], timeout=5)
            except MicroError as error:
                answer = {"status": "error", "error": error.detail}
            return {"node": route["id"], "address": route["addresses"][0], **answer}

        return list(await asyncio.gather(*(one(route) for route in routes)))

    rows: list[dict[str, Any]] = session.client.run(ask)
    return rows


@click.command()
@click.argument("service")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_context
def health(ctx: click.Context, service: str, output: str | None) -> None:
    """Ask the nodes of SERVICE for their health; exit 1 when one is not well."""
    session: Session = ctx.obj
    rows = _ask(session, service, "Debug.Health")
    if (output or session.output) == "json":
        as_json(rows)
    else:
        columns(
            ("NODE", "ADDRESS", "STATUS"),
            [(r["node"], r["address"], r.get("error") or r["status"]) for r in rows],
        )
    if any("error" in row for row in rows):
        ctx.exit(1)


@click.command()
@click.argument("service")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def stats(session: Session, service: str, output: str | None) -> None:
    """Ask the nodes of SERVICE for their figures."""
    rows = _ask(session, service, "Debug.Stats")
    if (output or session.output) == "json":
        as_json(rows)
        return
    columns(
        ("NODE", "PID", "STARTED", "MEMORY", "REQUESTS", "ERRORS", "IN FLIGHT", "SOCKETS"),
        [
            (
                r["node"],
                r.get("pid"),
                ago(r.get("started", 0)),
                size(r.get("memory", 0)),
                r.get("requests"),
                r.get("errors"),
                r.get("in_flight"),
                r.get("sockets"),
            )
            for r in rows
        ],
    )
