"""HTTP to helloworld through the api, against the ways it might have been built."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import cast

from bench.measure import Figure, Sample, calls, interleave, table
from bench.peers import ANSWER
from bench.stack import Server, micro, peer, server
from bench.wrk import load
from micro_ray import AsyncClient
from micro_ray.settings import bootstrap
from micro_ray.settings import load as settings_of

__all__ = ["run"]

OURS = "api to helloworld"
NAMES = (
    OURS,
    "(a) the same door answering by itself",
    "(b) Serve's proxy and a DeploymentHandle",
    "(c) the same app behind HAProxy, direct ingress",
    "(d) a bare uvicorn with the same bytes",
)
#: The call without the door.
DIRECT = "a direct call to the replica, by frames"


@contextmanager
def _platform(**extra: str) -> Iterator[Server]:
    with server(**extra) as up:
        micro(up, "run", "examples/helloworld")
        yield up


async def run(*, quick: bool) -> str:
    """Both tables: 32 connections, and one."""
    seconds, rounds = (1, 1) if quick else (5, 5)
    with (
        _platform(MICRO_API_REPLICAS="1") as ours,
        _platform(
            MICRO_API_REPLICAS="1",
            RAY_SERVE_ENABLE_HA_PROXY="1",
            RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="1",
            RAY_SERVE_HAPROXY_NBTHREAD="2",
        ) as haproxy,
        peer("door") as door,
        peer("handle") as handle,
        peer("uvicorn") as uvicorn,
    ):
        urls = {
            NAMES[0]: (f"http://127.0.0.1:{ours.port}/helloworld/call", True),
            NAMES[1]: (f"http://127.0.0.1:{door}/helloworld/call", True),
            NAMES[2]: (f"http://127.0.0.1:{handle}/", True),
            NAMES[3]: (f"http://127.0.0.1:{haproxy.serve_port}/helloworld/call", True),
            NAMES[4]: (f"http://127.0.0.1:{uvicorn}/", True),
        }
        settings = settings_of(ours.environ)
        parts = []
        async with AsyncClient(bootstrap(settings, {})) as client:
            for connections in (32, 1):
                figures = await _measure(urls, client, connections, seconds, rounds)
                parts.append(table(f"HTTP, {connections} connection(s)", figures, NAMES[0]))
        added = (figures[NAMES[0]].p50 - figures[DIRECT].p50) * 1e3
        added_p99 = (figures[NAMES[0]].p99 - figures[DIRECT].p99) * 1e3
        parts.append(
            f"Added by the door to a direct call, at one connection: p50 {added:.2f} ms, "
            f"p99 {added_p99:.2f} ms."
        )
        return "\n\n".join(parts)


async def _measure(
    urls: dict[str, tuple[str, bool]],
    client: AsyncClient,
    connections: int,
    seconds: int,
    rounds: int,
) -> dict[str, Figure]:
    async def once(url: str, post: bool) -> Sample:
        return await load(url, connections=connections, seconds=seconds, post=post)

    contenders: dict[str, Callable[[], Awaitable[Sample]]] = {
        name: functools.partial(once, *what) for name, what in urls.items()
    }
    contenders[DIRECT] = functools.partial(_direct, client, connections, seconds)
    return await interleave(contenders, rounds=rounds)


async def _direct(client: AsyncClient, in_flight: int, seconds: int) -> Sample:
    """Calls from this process to the replica, over frames, as the door makes them."""

    async def call(body: bytes) -> bytes:
        return cast(bytes, await client.call("helloworld", "Helloworld.Call", body))

    return await calls(call, b'{"name":"Alice"}', ANSWER, in_flight, seconds)
