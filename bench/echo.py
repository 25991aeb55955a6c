"""Echo servers for the comparison of transports, each a process of its own:
``python -m bench.echo frames|frames-tcp|frames-tls|grpc SOCKET``. Those of frames write their
address into ``SOCKET.address``. All answer a message with the same bytes."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from micro_ray.wire.identity import Secured


async def identity(folder: str, service: str) -> Secured:
    """One of the authority in ``folder``."""
    from micro_ray.certs import Credential, Identity
    from micro_ray.certs.keys import new_key, signing_request
    from micro_ray.certs.local import LocalAuthority
    from micro_ray.wire.identity import Secured

    key, who = new_key(), Identity(namespace="micro", service=service, node=f"{service}-0")
    authority = LocalAuthority(Path(folder) / "certs")
    issued = await authority.issue(signing_request(key), who, ttl=3600.0)
    return Secured(Credential(key=key, issued=issued))


async def frames(path: str, *, tcp: bool = False, tls: bool = False) -> None:
    from micro_ray.wire.server import Incoming, Server

    secured = await identity(str(Path(path).parent), "echo") if tls else None

    async def echo(incoming: Incoming) -> None:
        await incoming.reply(await incoming.receive() or b"")

    async with Server(echo, identity=secured) as server:
        address = await server.listen("tcp:127.0.0.1:0" if tcp or tls else f"unix:{path}")
        await asyncio.to_thread(Path(f"{path}.address").write_text, address)
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
    kinds: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
        "frames": frames,
        "frames-tcp": functools.partial(frames, tcp=True),
        "frames-tls": functools.partial(frames, tls=True),
        "grpc": grpc,
    }
    uvloop.run(kinds[sys.argv[1]](sys.argv[2]))
