"""grpc.health.v1: whether the door, or a service behind it, can be called.

The blank name is the door: SERVING once it has a route table, until it leaves. Another is a
service (``helloworld``) or one of its handlers as reflection lists them
(``helloworld.Helloworld``): SERVING while it has a node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from micro_ray.api.visitors import Visitor, Visitors
from micro_ray.auth import Resource
from micro_ray.auth.stays import Stay
from micro_ray.errors import MicroError
from micro_ray.router.table import Table
from micro_ray.serve.descriptors import package_of, service_of
from micro_ray.serve.heads import head_of, text_of
from micro_ray.wire.statuses import code_of, message_of

__all__ = ["FILE", "NAME", "Health", "Status", "question", "status_in"]

NAME = "grpc.health.v1.Health"


class Status(IntEnum):
    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def _file() -> descriptor_pb2.FileDescriptorProto:
    """health.proto, which the package grpcio-health-checking would bring."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    asked = file.message_type.add(name="HealthCheckRequest")
    asked.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    said = file.message_type.add(name="HealthCheckResponse")
    kinds = said.enum_type.add(name="ServingStatus")
    for status in Status:
        kinds.value.add(name=status.name, number=status.value)
    said.field.add(
        name="status", number=1, type=field.TYPE_ENUM, label=field.LABEL_OPTIONAL,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )  # fmt: skip
    service = file.service.add(name="Health")
    for name, streams in (("Check", False), ("Watch", True)):
        service.method.add(
            name=name,
            input_type=".grpc.health.v1.HealthCheckRequest",
            output_type=".grpc.health.v1.HealthCheckResponse",
            server_streaming=streams,
        )
    return file


FILE = _file()


def _class(name: str) -> type[Message]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(FILE.SerializeToString())
    made: type[Message] = message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"grpc.health.v1.{name}")
    )
    return made


_Request: Any = _class("HealthCheckRequest")
_Response: Any = _class("HealthCheckResponse")


def question(service: str = "") -> bytes:
    """The request of both methods."""
    made: bytes = _Request(service=service).SerializeToString()
    return made


def status_in(answer: bytes) -> Status:
    """What an answer says."""
    return Status(_Response.FromString(answer).status)


class Health(grpc.GenericRpcHandler):
    """Answers ``Check`` and ``Watch``. ``leaving`` is set when the door takes no more calls: then
    whoever watches is told so, and the watch ends."""

    def __init__(
        self,
        table: Table,
        visitors: Visitors,
        *,
        ready: Callable[[], bool],
        leaving: asyncio.Event,
    ) -> None:
        self._table = table
        self._visitors = visitors
        self._ready = ready
        self._leaving = leaving

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == f"/{NAME}/Check":
            return grpc.unary_unary_rpc_method_handler(self._check)
        if handler_call_details.method == f"/{NAME}/Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return None

    def of(self, service: str, visitor: Visitor | None = None) -> Status:
        """The status of a service as a visitor (default: nobody) may know it, blank: of the
        door."""
        if self._leaving.is_set():
            return Status.NOT_SERVING
        if not service:
            return Status.SERVING if self._ready() else Status.NOT_SERVING
        visitor = visitor or self._visitors.nobody
        known = self._known(service, visitor.namespace)
        asked = Resource(name=known, endpoint="Debug.Health")
        if not known or not self._visitors.allows(visitor, asked):
            return Status.SERVICE_UNKNOWN
        good = self._table.lookup(visitor.namespace, known)
        return Status.SERVING if good else Status.NOT_SERVING

    def _visitor(self, context: Any) -> Visitor:
        """Who asks; whose credential is none is nobody here."""
        try:
            return self._visitors.of(head_of(text_of(context.invocation_metadata())))
        except MicroError:
            return self._visitors.nobody

    def _known(self, service: str, namespace: str) -> str:
        """The service of this name, or that has a handler of this name; blank for none."""
        table = self._table
        if table.known(namespace, service):
            return service
        package = service.rpartition(".")[0]
        for name in table.services(namespace):
            entry = table.entry(namespace, name)
            if entry is None or package_of(name) != package:
                continue
            if any(service_of(name, endpoint.name) == service for endpoint in entry.endpoints):
                return name
        return ""

    async def _check(self, body: bytes, context: Any) -> bytes:
        status = self.of(await _asked(body, context), self._visitor(context))
        if status is Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        made: bytes = _Response(status=status).SerializeToString()
        return made

    async def _watch(self, body: bytes, context: Any) -> None:
        service = await _asked(body, context)
        visitor = self._visitor(context)
        try:
            with self._visitors.stay(visitor, None) as stay:
                await self._tell(service, visitor, stay, context)
        except MicroError as error:
            await context.abort(code_of(error), message_of(error))

    async def _tell(self, service: str, visitor: Visitor, stay: Stay, context: Any) -> None:
        """Tell the status and what becomes of it. Raises when the visitor's token has ended."""
        told: Status | None = None
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            while True:
                changed = asyncio.ensure_future(self._table.changed())
                try:
                    status = self.of(service, visitor)
                    if status is not told:
                        told = status
                        await context.write(_Response(status=status).SerializeToString())
                    if self._leaving.is_set():
                        return
                    waits: list[asyncio.Future[Any]] = [changed, leaving, stay.over]
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    stay.check()
                finally:
                    changed.cancel()
        finally:
            leaving.cancel()


async def _asked(body: bytes, context: Any) -> str:
    try:
        return str(_Request.FromString(body).service)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this is no HealthCheckRequest")
        raise AssertionError("abort raises") from None
