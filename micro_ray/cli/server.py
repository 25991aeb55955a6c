"""``micro server``."""

from __future__ import annotations

from typing import Any

import click

from micro_ray.cli.group import Interrupted

__all__ = ["server"]


@click.command()
@click.option("--port", type=int, help="Port of the HTTP door (default: 8080).")
@click.option("--proxy-port", type=int, help="Port of the gRPC door (default: 8081; 0: none).")
@click.option("--state", help="Folder of databases, sources and logs (default: ~/.micro/server).")
@click.option("--ray-address", help='Join this Ray ("auto" or host:port) instead of starting one.')
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside.")
def server(
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
    settings = load(overrides=overrides)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(message)s"
    )
    from micro_ray.cluster import serve

    if not asyncio.run(serve(settings, click.echo)):
        raise Interrupted
