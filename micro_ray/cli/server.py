"""``micro server``."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from micro_ray.cli.group import Interrupted
from micro_ray.cli.session import Session
from micro_ray.errors import MicroError

__all__ = ["server"]


@click.command()
@click.option("--port", type=int, help="Port of the HTTP door (default: 8080).")
@click.option("--proxy-port", type=int, help="Port of the gRPC door (default: 8081; 0: none).")
@click.option("--state", help="Folder of databases, sources and logs (default: ~/.micro/server).")
@click.option("--ray-address", help='Join this Ray ("auto" or host:port) instead of starting one.')
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside.")
@click.pass_obj
def server(
    session: Session,
    port: int | None,
    proxy_port: int | None,
    state: str | None,
    ray_address: str | None,
    verbose: bool,
) -> None:
    """Run the platform on this machine until Ctrl-C."""
    import asyncio
    import logging

    from micro_ray.settings import load

    given = {
        "api.port": port,
        "proxy.port": proxy_port,
        "state": state,
        "ray.address": ray_address,
    }
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if session.named:
        session.here("a server runs on this machine")
    settings = load(overrides=overrides)
    _elsewhere(session)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(message)s"
    )
    from micro_ray.cluster import serve

    if not asyncio.run(serve(settings, click.echo)):
        raise Interrupted


def _elsewhere(session: Session) -> None:
    """Say so when commands will not reach this server. What cannot be known keeps none from
    starting."""
    with contextlib.suppress(MicroError):
        where = session.environment
        if not where.is_local:
            click.echo(
                f"this server is the environment local; commands go to {where.name} "
                f"({where.address}) until `micro env set local`",
                err=True,
            )
