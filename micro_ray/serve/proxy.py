"""The gRPC door: any method of any service, its bytes untouched.

``/{service}.{Endpoint}/{Method}`` is the endpoint ``Endpoint.Method`` of a service;
``/{Endpoint}/{Method}`` is that of the service which the metadata ``micro-service`` names. Names
match as they do at the HTTP door. Messages pass as they are: what they mean is between the client
and the endpoint. Metadata goes on to the service but for what is gRPC's own or the platform's
(``grpc-``, ``micro-``) and what is binary (``-bin``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc

from micro_ray.api.body import JSON, OCTETS
from micro_ray.api.metadata import MAX_CREDENTIALS, metadata_of
from micro_ray.api.paths import Paths, Target
from micro_ray.errors import (
    BadRequest,
    HeadersTooLarge,
    InternalError,
    MicroError,
    NotFound,
    Timeout,
    Unavailable,
)
from micro_ray.network import Stream
from micro_ray.network.network import Network
from micro_ray.router.table import Table
from micro_ray.serve.statuses import DETAILS, code_of, details_of, message_of
from micro_ray.settings import Proxy as ProxySettings

__all__ = ["Door", "Proxy", "split"]

log = logging.getLogger(__name__)

#: Longest method path, in characters.
MAX_PATH = 1024
#: Metadata that a client may not set for a service, by the beginning or the whole of its key.
OWN = ("grpc-", "micro-")
HOP = frozenset(("user-agent", "te", "content-type", "authorization", "traceparent"))

Metadata = Mapping[str, str]


def split(method: str, service: str = "") -> tuple[str, str, str]:
    """Service, endpoint and method of a gRPC path; ``service`` where the path names none. Raises
    BadRequest for what is no such path, NotFound when no service is named."""
    parts = method.split("/")
    if len(method) > MAX_PATH or len(parts) != 3 or parts[0] or not parts[1] or not parts[2]:
        raise BadRequest("proxy", f"method {method[:64]!r}: use /service.Endpoint/Method")
    named, _, handler = parts[1].rpartition(".")
    if not handler:
        raise BadRequest("proxy", f"method {method[:64]!r}: use /service.Endpoint/Method")
    if not (named or service):
        raise NotFound(
            "proxy", f"{method} names no service: use /service{method.replace('/', '.', 1)} "
            "or the metadata micro-service"
        )  # fmt: skip
    return named or service, handler, parts[2]


class Proxy(grpc.GenericRpcHandler):
    """Answers every call by one over the network. One per replica."""

    def __init__(
        self, network: Network, table: Table, settings: ProxySettings, *, namespace: str = "micro"
    ) -> None:
        self._network = network
        self._settings = settings
        self._namespace = namespace
        self._paths = Paths(table, namespace)
        self.in_flight = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; one that fails where there is none."""
        sent = _text(handler_call_details.invocation_metadata)
        try:
            names = split(handler_call_details.method, sent.get("micro-service", ""))
            target = self._paths.named(*names)
        except MicroError as error:
            refused = error  # the name of an except clause ends with it

            async def refuse(_: Any, context: Any) -> None:
                await _abort(context, refused)

            return grpc.stream_stream_rpc_method_handler(refuse)
        if target.stream:

            async def stream(_: Any, context: Any) -> None:
                await self._serve(context, sent, target, self._stream)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(body: bytes, context: Any) -> Any:
            return await self._serve(context, sent, target, self._unary, body)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _serve(
        self, context: Any, sent: Metadata, target: Target, how: Any, *args: Any
    ) -> bytes | None:
        """One call, its errors as statuses."""
        metadata: dict[str, str] = {}
        self.in_flight += 1
        try:
            if self.in_flight > self._settings.max_in_flight:
                raise Unavailable("proxy", "too many calls are under way here", 1.0)
            metadata = self._metadata(sent, target.service)
            answer: bytes | None = await how(context, target, metadata, *args)
            return answer
        except MicroError as error:
            await _abort(context, error, metadata.get("x-request-id", ""))
        except Exception:
            request_id = metadata.get("x-request-id", "")
            log.exception("call %s failed in the door", request_id)
            shown = f"the door failed; its log has {request_id}"
            await _abort(context, InternalError("proxy", shown), request_id)
        finally:
            self.in_flight -= 1

    def _metadata(self, sent: Metadata, service: str) -> dict[str, str]:
        """What goes on to the service. The credential goes to auth alone: whoever gets a token
        may use it. It is here that a caller will be made of one."""
        credential = sent.get("authorization", "")
        if len(credential) > MAX_CREDENTIALS:
            raise HeadersTooLarge("proxy", f"metadata authorization over {MAX_CREDENTIALS} bytes")
        head = {key.encode(): value.encode("latin-1", "replace") for key, value in sent.items()}
        _, made = metadata_of(head)
        rest = {k: v for k, v in sent.items() if not k.startswith(OWN) and k not in HOP}
        if credential and service == "auth":
            rest["authorization"] = credential
        return {**rest, **made, "micro-namespace": self._namespace}

    async def _unary(
        self, context: Any, target: Target, metadata: dict[str, str], body: bytes
    ) -> bytes:
        left, timeout = context.time_remaining(), self._settings.timeout
        return await self._network.call(
            target.service,
            target.endpoint,
            body,
            namespace=self._namespace,
            timeout=timeout if left is None else min(_positive(left), timeout),
            content=OCTETS if target.raw_in else JSON,
            metadata=metadata,
            idempotent=bool(target.idempotent),
        )

    async def _stream(self, context: Any, target: Target, metadata: dict[str, str]) -> None:
        left = context.time_remaining()
        stream = await self._network.open(
            target.service,
            target.endpoint,
            namespace=self._namespace,
            timeout=None if left is None else _positive(left),
            content=OCTETS if target.raw_in else JSON,
            metadata=metadata,
        )
        async with stream:
            feed = asyncio.create_task(_feed(context, stream))
            try:
                async for message in stream:
                    await context.write(message)
            finally:
                feed.cancel()
                await asyncio.gather(feed, return_exceptions=True)


class Door:
    """A server of the proxy on a port that replicas share. ``bound`` is the port in use."""

    def __init__(self, proxy: Proxy, settings: ProxySettings) -> None:
        self._settings = settings
        self._server = grpc.aio.server(
            handlers=[proxy],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.max_message),
                ("grpc.max_send_message_length", settings.max_message),
                ("grpc.max_metadata_size", settings.max_metadata),
                ("grpc.absolute_max_metadata_size", settings.max_metadata),
                ("grpc.max_concurrent_streams", settings.max_streams),
            ],
        )
        self.bound = settings.port

    async def start(self) -> None:
        """Listen. Raises Unavailable when the port cannot be bound."""
        host, port = self._settings.host, self._settings.port
        try:
            self.bound = self._server.add_insecure_port(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            )
        except RuntimeError as error:
            raise Unavailable("proxy", f"cannot listen on {host}:{port}: {error}") from None
        await self._server.start()

    async def stop(self, drain: float = 25.0) -> None:
        """Take no new call, finish what is under way within ``drain`` seconds, close."""
        await self._server.stop(drain)


async def _feed(context: Any, stream: Stream) -> None:
    """Pass the client's messages on, each when the one before was taken."""
    with contextlib.suppress(MicroError):  # the other direction raises it too
        while (message := await context.read()) is not grpc.aio.EOF:
            await stream.send(message)
        await stream.end()


async def _abort(context: Any, error: MicroError, request_id: str = "") -> NoReturn:
    trailing: list[tuple[str, str | bytes]] = [(DETAILS, details_of(error))]
    if request_id:
        trailing.append(("x-request-id", request_id))
    await context.abort(code_of(error), message_of(error), tuple(trailing))
    raise AssertionError("abort raises")


def _positive(left: float) -> float:
    if left <= 0:
        raise Timeout("proxy", "the deadline passed before the call was made")
    return left


def _text(metadata: Any) -> dict[str, str]:
    """The text of a call's metadata; values of a key that comes twice are joined, as HTTP says."""
    found: dict[str, str] = {}
    for key, value in metadata or ():
        if isinstance(value, str) and not key.endswith("-bin"):
            found[key] = f"{found[key]}, {value}" if key in found else value
    return found
