"""Echo servers for the comparison of transports, each a process of its own:
``python -m bench.echo frames|grpc SOCKET``. All answer a message with the same bytes."""

from __future__ import annotations

import asyncio
import sys

import uvloop


async def frames(path: str) -> None:
    from micro_ray.wire.server import Incoming, Server

    async def echo(incoming: Incoming) -> None:
        await incoming.reply(await incoming.receive() or b"")

    async with Server(echo) as server:
        await server.listen(f"unix:{path}")
        print("ready", flush=True)
        await asyncio.Event().wait()


async def grpc(path: str) -> None:
    import grpc.aio

    async def echo(request: bytes, context: object) -> bytes:
        return request

    class Generic(grpc.GenericRpcHandler):
        def service(self, details: object) -> object:
            return grpc.unary_unary_rpc_method_handler(echo)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Generic(),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run({"frames": frames, "grpc": grpc}[sys.argv[1]](sys.argv[2]))
