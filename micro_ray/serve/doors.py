"""Ray Serve and the doors on it. Imported once Ray runs: Serve reads its environment then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from micro_ray.errors import Unavailable
from micro_ray.runtime.waiting import in_thread
from micro_ray.serve import api, proxy_door
from micro_ray.settings import Settings

__all__ = ["doors"]

#: Seconds that doors whose start was given up have to notice it.
GIVEN_UP = 5.0


@asynccontextmanager
async def doors(
    settings: Settings, report: Callable[[str], None], joined: bool
) -> AsyncIterator[str]:
    """The doors inside ``async with``, ready; the url of the api. On a Ray that was ``joined`` they
    are on this machine, as they listen on its loopback interface. Raises Unavailable when one does
    not come up."""
    options = HTTPOptions(host=settings.api.host, port=settings.api.serve_port or 8000)
    location = ProxyLocation.HeadOnly if settings.api.serve_port else ProxyLocation.Disabled
    run = partial(serve.run_many, _targets(settings, settings.address if joined else ""))
    running: asyncio.Future[Any] | None = None
    up = False
    try:
        await in_thread(partial(serve.start, proxy_location=location, http_options=options))
        running = asyncio.ensure_future(asyncio.to_thread(run))
        try:
            await asyncio.shield(running)
        except RuntimeError as error:
            ports = " or ".join(str(p) for p in (settings.api.port, settings.proxy.port) if p)
            raise Unavailable(
                "server",
                f"the doors do not come up ({error}): perhaps another program has taken port "
                f"{ports} meanwhile",
            ) from error
        url = await _answering(settings, report)
        up = True
        yield url
    finally:
        if up or joined:  # else no door has been called, and they end with Ray
            await asyncio.to_thread(serve.shutdown)
        if running is not None and not running.done():
            running.add_done_callback(asyncio.Future.exception)  # it was given up
        if joined and running is not None and not running.done():
            # It may have made Serve anew.
            await asyncio.wait([running], timeout=GIVEN_UP)
            await asyncio.to_thread(serve.shutdown)


def _targets(settings: Settings, address: str) -> list[serve.RunTarget]:
    found = [
        serve.RunTarget(
            target=api.application(settings, address=address), name=api.NAME, route_prefix="/"
        )
    ]
    if settings.proxy.port:
        found.append(
            serve.RunTarget(
                target=proxy_door.application(settings, address=address),
                name=proxy_door.NAME,
                route_prefix=None,
            )
        )
    return found


async def _answering(settings: Settings, report: Callable[[str], None]) -> str:
    """Wait until each door answers, and say so; the url of the api."""
    http, grpc, within = settings.api, settings.proxy, settings.runtime.start_timeout
    await _answers(http.host, http.port, within)
    url = f"http://{http.host}:{http.port}"
    report(f"api       up  {url}  {_count(http.replicas)}")
    if http.serve_port:
        report(f"serve     up  http://{http.host}:{http.serve_port}")
    if grpc.port:
        await proxy_door.answers(grpc.host, grpc.port, within)
        report(f"proxy     up  grpc://{grpc.host}:{grpc.port}  {_count(grpc.replicas)}")
    return url


def _count(replicas: int) -> str:
    return f"{replicas} replica{'s' if replicas != 1 else ''}"


async def _answers(host: str, port: int, within: float) -> None:
    """Wait until the api says that it is ready."""
    end = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(b"GET /ready HTTP/1.1\r\nhost: door\r\nconnection: close\r\n\r\n")
                    if b" 200 " in await reader.readline():
                        return
                finally:
                    writer.close()
        if time.monotonic() > end:
            raise Unavailable("server", f"the api on {host}:{port} is not ready in {within:g} s")
        await asyncio.sleep(0.05)
