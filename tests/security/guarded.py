"""A platform that asks everybody who he is, with both doors, within this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from micro_ray import Service
from micro_ray.api.app import Api
from micro_ray.api.visitors import Visitors
from micro_ray.auth import ADMIN
from micro_ray.context import current
from micro_ray.errors import MicroError
from micro_ray.network import Call
from micro_ray.network.network import Network
from micro_ray.registry import Endpoint
from micro_ray.router.table import home
from micro_ray.sdk.authority import Authority
from micro_ray.sdk.testing import Here, platform
from micro_ray.serve.catalogue import Catalogues
from micro_ray.serve.grpc_listener import GrpcListener
from micro_ray.serve.health import Health
from micro_ray.serve.proxy import Proxy
from micro_ray.serve.reflection import Reflection
from micro_ray.settings import Api as ApiSettings
from micro_ray.settings import Auth as AuthSettings
from micro_ray.settings import Proxy as ProxySettings
from micro_ray.wire.dialer import WireDialer

__all__ = ["ADMIN", "REFUSED", "WAYS", "Guarded", "Verb", "guarded"]

#: The ways in.
WAYS = ("http", "grpc", "frames")
#: Seconds after which a call is given up that should be refused.
REFUSED = 15.0
#: What gRPC says where HTTP says so.
CODES = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """An endpoint of a service."""

    service: str
    endpoint: str
    stream: str = ""

    def __str__(self) -> str:
        return f"{self.service}:{self.endpoint}"


class Guarded:
    def __init__(
        self,
        here: Here,
        network: Network,
        api: Api,
        http: httpx.AsyncClient,
        channel: Any,
        port: int,
    ) -> None:
        assert here.authority is not None
        self.here = here
        self.authority: Authority = here.authority
        self.network = network
        self.api = api
        self.http = http
        self.channel = channel
        #: Of the gRPC door, on 127.0.0.1.
        self.port = port
        self._dialer = WireDialer()

    def verbs(self) -> list[Verb]:
        """Every verb of every service that there is."""
        found = []
        for entry in self.network.table.entries("*"):
            endpoints: list[Endpoint] = list(entry.endpoints)
            found += [Verb(service=entry.service, endpoint=e.name, stream=e.stream)
                      for e in endpoints]  # fmt: skip
        return found

    async def code(
        self,
        way: str,
        verb: Verb,
        head: Mapping[str, str],
        body: bytes = b"{}",
        within: float = REFUSED,
    ) -> tuple[int, str]:
        """What a verb says, and in which words. A call that goes on after ``within`` seconds was
        let in: 200."""
        try:
            async with asyncio.timeout(within):
                return await getattr(self, f"_{way}")(verb, head, body)
        except TimeoutError:
            return 200, "it goes on"

    async def _http(self, verb: Verb, head: Mapping[str, str], body: bytes) -> tuple[int, str]:
        handler, _, name = verb.endpoint.partition(".")
        path = f"/{verb.service.replace('.', '/')}/{handler}/{name}"
        answer = await self.http.post(path, content=body, headers=dict(head))
        return answer.status_code, answer.text

    async def _grpc(self, verb: Verb, head: Mapping[str, str], body: bytes) -> tuple[int, str]:
        handler, _, name = verb.endpoint.partition(".")
        call = self.channel.stream_stream(f"/{verb.service}.{handler}/{name}")(
            iter([body]), metadata=tuple(head.items())
        )
        try:
            answer = [message async for message in call]
        except grpc.aio.AioRpcError as error:
            return CODES.get(error.code(), 500), error.details() or ""
        finally:
            call.cancel()
        return 200, str(answer)

    async def _frames(self, verb: Verb, head: Mapping[str, str], body: bytes) -> tuple[int, str]:
        space = home("micro", verb.service)
        address = self.network.table.lookup(space, verb.service)[0].addresses[0]
        peer = await self._dialer.dial(address, namespace=space)
        try:
            made = await peer.open(
                Call(service=verb.service, endpoint=verb.endpoint, metadata=dict(head))
            )
            async with made as stream:
                with contextlib.suppress(MicroError):
                    await stream.send(body)
                    await stream.end()
                answer = [message async for message in stream]
        except MicroError as error:
            return error.code, str(error)
        finally:
            await peer.close()
        return 200, str(answer)


@asynccontextmanager
async def guarded() -> AsyncIterator[Guarded]:
    hello = Service("helloworld")

    @hello.endpoint
    async def call(name: str = "World") -> dict[str, str]:
        context = current()
        return {"message": f"Hello {name}", "by": context.caller, "space": context.namespace}

    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(platform(AuthSettings()))
        await here.serve(hello)
        network = await here.network("api")
        assert here.authority is not None
        assert here.trust is not None
        await here.trust.informer.ready.wait()
        visitors = Visitors(
            here.trust.guard, here.authority.passes("api"), denials=here.trust.denials
        )
        api = Api(network, network.table, ApiSettings(), ready=lambda: True, visitors=visitors)
        transport = httpx.ASGITransport(app=api)
        http = httpx.AsyncClient(transport=transport, base_url="http://door")
        await stack.enter_async_context(http)
        catalogues, leaving = Catalogues(network.table), asyncio.Event()
        settings = ProxySettings(port=0)
        handlers = [
            Health(network.table, visitors, ready=lambda: True, leaving=leaving),
            Reflection(catalogues, visitors, leaving=leaving),
            Proxy(network, catalogues, settings, visitors=visitors),
        ]
        listener = GrpcListener(handlers, settings, leaving)
        await listener.start()
        stack.push_async_callback(listener.stop, 0.0)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{listener.bound}")
        stack.push_async_callback(channel.close)
        yield Guarded(here, network, api, http, channel, listener.bound)
