"""health and stats: every node of a service asked for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from micro_ray.cli.completion import service_names
from micro_ray.cli.output import ago, as_json, columns, output, size
from micro_ray.cli.session import Session
from micro_ray.errors import MicroError, NotFound

if TYPE_CHECKING:
    from micro_ray.sdk.client import AsyncClient

__all__ = ["health", "stats"]

#: Seconds that each node has for its answer.
PATIENCE = 5.0


def _ask(session: Session, service: str, endpoint: str) -> list[dict[str, Any]]:
    """The answer of each node, or its error."""
    import asyncio

    session.here("nodes are asked one by one on the machine of the server only")

    async def ask(client: AsyncClient) -> list[dict[str, Any]]:
        await client.entries()  # the table is there
        namespace = session.namespace
        routes = client.table.lookup(namespace, service)
        if not routes:
            near = client.table.near(namespace, service)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise NotFound("network", f"no service {service!r}{hint}")

        async def one(route: Any) -> dict[str, Any]:
            where = route.addresses[0] if route.addresses else ""
            row = {"node": route.id, "version": route.version, "address": where}
            try:
                answer = await client.call(service, endpoint, {}, node=route.id, timeout=PATIENCE)
            except MicroError as error:
                return {**row, "status": "error", "error": error.detail}
            return {**row, **answer}

        ordered = sorted(routes, key=lambda route: (route.version, route.id))
        return list(await asyncio.gather(*(one(route) for route in ordered)))

    rows: list[dict[str, Any]] = session.client.run(ask)
    return rows


@click.command()
@click.argument("service", shell_complete=service_names)
@output()
@click.pass_context
def health(ctx: click.Context, service: str) -> None:
    """Ask the nodes of SERVICE for their health; exit 1 when one is not well."""
    session: Session = ctx.obj
    rows = _ask(session, service, "Debug.Health")
    if session.output == "json":
        as_json(rows)
    else:
        columns(
            ("NODE", "VERSION", "ADDRESS", "STATUS"),
            [(r["node"], r["version"], r["address"], r.get("error") or r["status"]) for r in rows],
        )
    if any("error" in row for row in rows):
        ctx.exit(1)


@click.command()
@click.argument("service", shell_complete=service_names)
@output()
@click.pass_context
def stats(ctx: click.Context, service: str) -> None:
    """Ask the nodes of SERVICE for their figures; exit 1 when one does not answer."""
    session: Session = ctx.obj
    rows = _ask(session, service, "Debug.Stats")
    if session.output == "json":
        as_json(rows)
    else:
        columns(
            ("NODE", "PID", "STARTED", "MEMORY", "REQUESTS", "ERRORS", "IN FLIGHT", "SOCKETS"),
            [
                (
                    r["node"],
                    r.get("pid"),
                    ago(r.get("started")),
                    size(r.get("memory")),
                    r.get("requests"),
                    r.get("errors"),
                    r.get("in_flight"),
                    r.get("sockets"),
                )
                for r in rows
            ],
        )
    failed = [row for row in rows if "error" in row]
    for row in failed:
        click.echo(f"{row['node']}: {row['error']}", err=True)
    if failed:
        ctx.exit(1)
