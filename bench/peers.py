"""The peers that the doors are measured against, each run as a process of its own:

``python -m bench.peers handle PORT``   the obvious design: Serve's default proxy, an ingress
                                       deployment, a DeploymentHandle to the service
``python -m bench.peers door PORT``     the same door, answering by itself: the same application and
                                       listener, whose calls are answered on the spot
``python -m bench.peers uvicorn PORT``  a bare uvicorn that answers the same bytes
``python -m bench.peers grpc PORT``     a bare grpc.aio server that calls helloworld's own function
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from typing import Any

ANSWER = b'{"message":"Hello Alice"}'


def handle(port: int) -> None:
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_worker_niceness="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_enable_metrics_collection="0",
        RAY_SERVE_LOG_TO_STDERR="0",
    )
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        num_cpus=4,
        object_store_memory=100 * 2**20,
        _temp_dir=tempfile.mkdtemp(prefix="peer-"),
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    class Helloworld:
        async def call(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"message": f"Hello {request['name']}"}

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    class Door:
        def __init__(self, service: Any) -> None:
            self.service = service

        async def __call__(self, request: Any) -> Any:
            return await self.service.call.remote(json.loads(await request.body()))

    serve.run(Door.bind(Helloworld.bind()), name="peer", route_prefix="/")
    print("ready", flush=True)
    threading.Event().wait()


def door(port: int) -> None:
    import asyncio

    import uvloop

    from micro_ray.api.app import Api
    from micro_ray.registry import Endpoint
    from micro_ray.router import Delta, Entry
    from micro_ray.router.table import Table
    from micro_ray.serve.listener import Listener
    from micro_ray.settings import Api as ApiSettings

    class Here:
        """In the network's place: the answer without a call."""

        async def call(self, service: str, endpoint: str, body: bytes, **options: Any) -> bytes:
            return ANSWER

    async def serve() -> None:
        table = Table()
        endpoint = Endpoint(name="Helloworld.Call")
        entry = Entry(
            namespace="micro", service="helloworld", version="latest", endpoints=(endpoint,)
        )
        table.apply(Delta(epoch="door", revision=1, full=True, entries=(entry,)))
        network: Any = Here()
        settings = ApiSettings()
        api = Api(network, table, settings, ready=lambda: True)
        listener = Listener(api, "127.0.0.1", port, settings)
        await listener.start()
        print("ready", flush=True)
        await asyncio.Event().wait()

    uvloop.run(serve())


def uvicorn(port: int) -> None:
    import uvicorn as server

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"25")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    config = server.Config(
        app, host="127.0.0.1", port=port, access_log=False, lifespan="off", log_level="warning"
    )
    print("ready", flush=True)
    server.Server(config).run()


def grpc(port: int) -> None:
    import asyncio
    import runpy

    import grpc as library
    import msgspec
    import uvloop

    function = runpy.run_path("examples/helloworld/main.py")["call"]
    encode, decode = msgspec.json.encode, msgspec.json.Decoder(dict[str, Any]).decode

    class Handler(library.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            async def answer(body: bytes, context: Any) -> bytes:
                return encode(await function(**decode(body)))

            return library.unary_unary_rpc_method_handler(answer)

    async def serve() -> None:
        server = library.aio.server(handlers=(Handler(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        print("ready", flush=True)
        await asyncio.Event().wait()

    uvloop.run(serve())


if __name__ == "__main__":
    peers = {"door": door, "grpc": grpc, "handle": handle, "uvicorn": uvicorn}
    peers[sys.argv[1]](int(sys.argv[2]))
