"""gRPC to helloworld through the proxy, against a bare grpc.aio server with the same function."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc

from bench.measure import Figure, Sample, calls, interleave, table
from bench.peers import ANSWER
from bench.stack import micro, peer, server
from micro_ray import AsyncClient
from micro_ray.serve.catalogue import Catalogue
from micro_ray.serve.messages import request_of, response_of
from micro_ray.settings import bootstrap
from micro_ray.settings import load as settings_of

__all__ = ["run"]

OURS = "proxy to helloworld"
NAMES = (
    OURS,
    "(a) the same, in protobuf",
    "(b) a bare grpc.aio server with the same function",
    "(c) a direct call to the replica, by frames",
)
BODY = b'{"name":"Alice"}'
PATH = "/helloworld.Helloworld/Call"


async def run(*, quick: bool) -> str:
    """Both tables: 32 calls at once on one channel, and one."""
    seconds, rounds = (1, 1) if quick else (3, 5)
    with server(MICRO_PROXY_REPLICAS="1") as ours, peer("grpc") as bare:
        micro(ours, "run", "examples/helloworld")
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                AsyncClient(bootstrap(settings_of(ours.environ), {}))
            )
            methods = [
                (await stack.enter_async_context(_channel(port))).unary_unary(PATH)
                for port in (ours.proxy_port, bare)
            ]
            await client.call("helloworld", "Helloworld.Call", BODY)
            message, answered = _messages(client)
            direct = functools.partial(client.call, "helloworld", "Helloworld.Call")
            contenders: dict[str, tuple[Any, bytes, bytes]] = {
                NAMES[0]: (methods[0], BODY, ANSWER),
                NAMES[1]: (methods[0], message, answered),
                NAMES[2]: (methods[1], BODY, ANSWER),
                NAMES[3]: (direct, BODY, ANSWER),
            }
            parts = []
            for in_flight in (32, 1):
                figures = await _measure(contenders, in_flight, seconds, rounds)
                parts.append(table(f"gRPC, {in_flight} in flight", figures, OURS))
        added = (figures[OURS].p50 - figures[NAMES[2]].p50) * 1e3
        parts.append(
            f"Added by the door and its hop to a bare gRPC call, one at a time: p50 {added:.2f} ms."
        )
        return "\n\n".join(parts)


def _channel(port: int) -> Any:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


def _messages(client: AsyncClient) -> tuple[bytes, bytes]:
    """Request and answer in the protobuf that reflection describes."""
    method = Catalogue(client.table, "micro").method("helloworld", "Helloworld.Call")
    assert method is not None
    request: Any = method.request(name="Alice")
    made: bytes = request.SerializeToString()
    assert request_of(method, made) == BODY
    return made, response_of(method, ANSWER, raw=False)


async def _measure(
    contenders: dict[str, tuple[Any, bytes, bytes]], in_flight: int, seconds: int, rounds: int
) -> dict[str, Figure]:
    async def once(call: Any, body: bytes, answer: bytes) -> Sample:
        async def one(sent: bytes) -> bytes:
            return cast(bytes, await call(sent))

        return await calls(one, body, answer, in_flight, seconds)

    made: dict[str, Callable[[], Awaitable[Sample]]] = {
        name: functools.partial(once, *what) for name, what in contenders.items()
    }
    return await interleave(made, rounds=rounds)
