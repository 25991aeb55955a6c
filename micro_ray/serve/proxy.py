"""The gRPC door: any method of any service.

``/{service}.{Endpoint}/{Method}`` is the endpoint ``Endpoint.Method`` of a service;
``/{Endpoint}/{Method}`` is that of the service which the metadata ``micro-service`` names. Names
match as they do at the HTTP door. JSON and bytes pass as they are; a message of the protobuf that
reflection describes is made JSON here, and its answer protobuf (``forms.py``). Metadata goes on to
the service but for what is gRPC's own or the platform's (``grpc-``, ``micro-``) and what is binary
(``-bin``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from micro_ray.api.body import JSON, OCTETS
from micro_ray.api.metadata import MAX_CREDENTIALS, metadata_of
from micro_ray.api.metrics import Metrics
from micro_ray.api.paths import AllPaths, Target
from micro_ray.api.visitors import Visitor, Visitors, counted
from micro_ray.auth.stays import Stay
from micro_ray.errors import (
    BadRequest,
    HeadersTooLarge,
    InternalError,
    MicroError,
    NotFound,
    Timeout,
    Unavailable,
)
from micro_ray.limits.gate import ADMITTED, FREE, Admission, Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.network import Stream
from micro_ray.network.network import Network
from micro_ray.serve.catalogue import Catalogues
from micro_ray.serve.forms import SAID, Form
from micro_ray.serve.heads import head_of, text_of
from micro_ray.settings import Proxy as ProxySettings
from micro_ray.wire.statuses import DETAILS, code_of, details_of, message_of

__all__ = ["Proxy", "split"]

log = logging.getLogger(__name__)

#: Longest method path, in characters.
MAX_PATH = 1024
#: Metadata that a client may not set for a service, by the beginning or the whole of its key.
OWN = ("grpc-", "micro-")
HOP = frozenset(("user-agent", "te", "content-type", SAID, "authorization", "traceparent"))

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
        self,
        network: Network,
        catalogues: Catalogues,
        settings: ProxySettings,
        *,
        visitors: Visitors | None = None,
        gate: Gate | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._network = network
        self._catalogues = catalogues
        self._visitors = visitors or Visitors()
        self._settings = settings
        self._gate = gate
        self._pressure = pressure or Pressure(1.0)
        self._paths = AllPaths(network.table)
        self.metrics = Metrics()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; one that fails where there is none."""
        sent = text_of(handler_call_details.invocation_metadata)
        try:
            names = split(handler_call_details.method, sent.get("micro-service", ""))
            if len(sent.get("authorization", "")) > MAX_CREDENTIALS:
                what = f"metadata authorization over {MAX_CREDENTIALS} bytes"
                raise HeadersTooLarge("proxy", what)
            visitor = self._visitors.of(head_of(sent))
            stranger = self._visitors.stranger(visitor)
            target = self._paths.of(visitor.namespace, stranger=stranger).named(*names)
            self._visitors.check(visitor, target.resource, stream=bool(target.stream))
        except MicroError as error:
            refused = error  # the name of an except clause ends with it

            async def refuse(_: Any, context: Any) -> None:
                self.metrics.count(self._visitors.nobody.namespace, "proxy", refused.grpc, None)
                await _abort(context, refused)

            return grpc.stream_stream_rpc_method_handler(refuse)
        if target.stream:

            async def stream(_: Any, context: Any) -> None:
                await self._serve(context, sent, visitor, target, self._stream, visitor)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(body: bytes, context: Any) -> Any:
            return await self._serve(context, sent, visitor, target, self._unary, body)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _serve(
        self,
        context: Any,
        sent: Metadata,
        visitor: Visitor,
        target: Target,
        how: Any,
        *args: Any,
    ) -> bytes | None:
        """One call, its errors as statuses."""
        metadata: dict[str, str] = {}
        admission, begun, code = FREE, time.perf_counter(), "OK"
        self.metrics.in_flight += 1
        try:
            self._check()
            metadata = self._metadata(context, sent, visitor, target.service)
            admission = await self._admitted(visitor, target)
            catalogue = self._catalogues.of(visitor.namespace)
            form = Form(catalogue, target, sent.get(SAID, ""))
            answer: bytes | None = await how(context, target, metadata, form, *args)
            return answer
        except MicroError as error:
            code = error.grpc
            await _abort(context, error, metadata.get("x-request-id", ""))
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception:
            code = "INTERNAL"
            request_id = metadata.get("x-request-id", "")
            log.exception("call %s failed in the door", request_id)
            shown = f"the door failed; its log has {request_id}"
            await _abort(context, InternalError("proxy", shown), request_id)
        finally:
            admission.release()
            self.metrics.in_flight -= 1
            seconds = None if target.stream else time.perf_counter() - begun
            place = counted(visitor, target.service), target.service
            self.metrics.count(*place, code, seconds)

    def _check(self) -> None:
        """Raises Unavailable when this replica has too much to do."""
        if self.metrics.in_flight > self._settings.max_in_flight:
            raise Unavailable("proxy", "too many calls are under way here", 1.0)
        if self._pressure.short:
            raise Unavailable(
                "proxy", f"{self._pressure.fraction:.0%} of the memory is in use here", 1.0
            )

    async def _admitted(self, visitor: Visitor, target: Target) -> Admission:
        """What lets a call in. Raises TooManyRequests."""
        if self._gate is None:
            return FREE
        space = self._visitors.limited_in(visitor)
        call = (space, visitor.account, target.service, target.endpoint)
        return self._gate.admit(*call) or await self._gate.obtain(*call)

    def _metadata(
        self, context: Any, sent: Metadata, visitor: Visitor, service: str
    ) -> dict[str, str]:
        """What goes on to the service."""
        head = head_of(sent)
        _, made = metadata_of(head)
        rest = {k: v for k, v in sent.items() if not k.startswith(OWN) and k not in HOP}
        made |= self._visitors.along(
            visitor,
            service,
            credential=head.get(b"authorization", b""),
            source=_source(context.peer()),
        )
        if self._gate is not None:
            made[ADMITTED] = "1"
        return {**rest, **made}

    async def _unary(
        self, context: Any, target: Target, metadata: dict[str, str], form: Form, body: bytes
    ) -> bytes:
        left, timeout = context.time_remaining(), self._settings.timeout
        answer = await self._network.call(
            target.service,
            target.endpoint,
            form.request(body),
            namespace=metadata["micro-namespace"],
            timeout=timeout if left is None else min(_positive(left), timeout),
            content=OCTETS if target.raw_in else JSON,
            metadata=metadata,
            idempotent=bool(target.idempotent),
        )
        return form.answer(answer)

    async def _stream(
        self, context: Any, target: Target, metadata: dict[str, str], form: Form, visitor: Visitor
    ) -> None:
        with self._visitors.stay(visitor, target.resource) as stay:
            await self._stay(context, target, metadata, form, stay)

    async def _stay(
        self, context: Any, target: Target, metadata: dict[str, str], form: Form, stay: Stay
    ) -> None:
        left = context.time_remaining()
        stream = await self._network.open(
            target.service,
            target.endpoint,
            namespace=metadata["micro-namespace"],
            timeout=None if left is None else _positive(left),
            content=OCTETS if target.raw_in else JSON,
            metadata=metadata,
        )
        async with stream:
            stay.over.add_done_callback(lambda _: stream.cancel())
            feed = asyncio.create_task(_feed(context, stream, form))
            try:
                async for message in stream:
                    await context.write(form.answer(message))
                    stay.check()
            except MicroError:
                stay.check()  # it is why the stream was given up
                if feed.done():
                    feed.result()  # what the client sent is why it ended
                raise
            finally:
                feed.cancel()
                await asyncio.gather(feed, return_exceptions=True)


async def _feed(context: Any, stream: Stream, form: Form) -> None:
    """Pass the client's messages on, each when the one before was taken. Raises what is wrong with
    one, and gives the call up."""
    while (message := await context.read()) is not grpc.aio.EOF:
        try:
            body = form.request(message)
        except MicroError:
            stream.cancel()
            raise
        with contextlib.suppress(MicroError):  # the other direction raises it too
            await stream.send(body)
            continue
        return
    with contextlib.suppress(MicroError):
        await stream.end()


async def _abort(context: Any, error: MicroError, request_id: str = "") -> NoReturn:
    trailing: list[tuple[str, str | bytes]] = [(DETAILS, details_of(error))]
    if request_id:
        trailing.append(("x-request-id", request_id))
    await context.abort(code_of(error), message_of(error), tuple(trailing))
    raise AssertionError("abort raises")


def _source(peer: str) -> str:
    """The address of a client, from gRPC's ``ipv4:1.2.3.4:5`` or ``ipv6:%5B::1%5D:5``."""
    address = unquote(peer.partition(":")[2]).rpartition(":")[0]
    return address.removeprefix("[").removesuffix("]")


def _positive(left: float) -> float:
    if left <= 0:
        raise Timeout("proxy", "the deadline passed before the call was made")
    return left
