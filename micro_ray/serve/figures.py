"""What replicas of the gRPC door have counted, told to the HTTP door, which shows it: each replica
listens on a Unix socket of the platform's folder, and whoever shows figures asks them all. The
doors are on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from micro_ray.api.metrics import Figures, Metrics
from micro_ray.auth.callers import Callers
from micro_ray.context import current
from micro_ray.errors import Forbidden, MicroError
from micro_ray.network import Call, Dialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.remote import decode, encode
from micro_ray.wire.schema import MSGPACK
from micro_ray.wire.server import Server

__all__ = ["SERVICE", "asked", "told"]

log = logging.getLogger(__name__)

#: Who tells.
SERVICE = "proxy"
ENDPOINT = "Proxy.Figures"
#: Replicas that are asked at most, and seconds that they have.
MOST, WITHIN = 200, 1.0


@contextlib.asynccontextmanager
async def told(metrics: Metrics, run: Path, callers: Callers | None) -> AsyncIterator[None]:
    """Tell them as long as this lasts. ``callers`` decides who may ask: the platform alone; None:
    whoever reaches the socket, which is its owner's alone."""
    face = Endpoints(SERVICE)

    async def figures() -> Figures:
        """What this replica has counted."""
        identity = current().identity
        if callers is not None and (identity is None or not identity.everywhere):
            raise Forbidden(SERVICE, "figures are told to the platform alone")
        return metrics.figures()

    face.add(ENDPOINT, figures)
    face.callers = callers
    async with Server(face.handler, name=SERVICE) as server:
        await server.listen(f"unix:{run / _name(os.getpid())}")
        yield


async def asked(dialer: Dialer, run: Path) -> list[Figures]:
    """Those of each replica that answers, by their processes."""
    paths = sorted(run.glob(_name("*")))[:MOST]  # noqa: ASYNC240 - a folder of a few sockets
    found = await asyncio.gather(*(_asked(dialer, path) for path in paths))
    return [figures for figures in found if figures is not None]


async def _asked(dialer: Dialer, path: Path) -> Figures | None:
    head = Call(service=SERVICE, endpoint=ENDPOINT, content=MSGPACK, timeout=WITHIN)
    try:
        peer = await dialer.dial(f"unix:{path}", timeout=WITHIN, service=SERVICE)
        try:
            return decode(await peer.call(head, encode({})), Figures, SERVICE)
        finally:
            await peer.close()
    except MicroError as error:
        log.debug("the figures at %s: %s", path, error)
        _forget(path)
        return None


def _name(pid: int | str) -> str:
    return f"{SERVICE}-figures-{pid}.sock"


def _forget(path: Path) -> None:
    """A process that was killed has left its socket."""
    with contextlib.suppress(OSError, ValueError):
        try:
            os.kill(int(path.stem.rpartition("-")[2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
