"""grpc.reflection.v1 and v1alpha: what services there are and what their methods take, for clients
that know nothing beforehand. Both have the same messages under two names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    struct_pb2,
    text_format,
    wrappers_pb2,
)
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from micro_ray.api.visitors import Visitor, Visitors
from micro_ray.auth import Resource
from micro_ray.auth.stays import Stay
from micro_ray.errors import MicroError
from micro_ray.serve import health
from micro_ray.serve.catalogue import Catalogues, Shown
from micro_ray.serve.descriptors import Description
from micro_ray.serve.heads import head_of, text_of
from micro_ray.wire.statuses import code_of, message_of

__all__ = ["NAMES", "Reflection"]

V1, V1ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"
NAMES = (f"{V1}.ServerReflection", f"{V1ALPHA}.ServerReflection")
#: Longest name that is looked for, in characters.
MAX_NAME = 1024


def _own() -> descriptor_pool.DescriptorPool:
    """What the door itself serves."""
    pool = descriptor_pool.DescriptorPool()
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace(V1ALPHA, V1)
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    v1.name = "grpc/reflection/v1/reflection.proto"
    for known in (struct_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for file in (alpha, v1, health.FILE):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


class Reflection(grpc.GenericRpcHandler):
    """Answers ``ServerReflectionInfo``: of what the caller may call. ``leaving`` ends the
    streams."""

    def __init__(
        self, catalogues: Catalogues, visitors: Visitors, *, leaving: asyncio.Event
    ) -> None:
        self._catalogues = catalogues
        self._visitors = visitors
        self._leaving = leaving
        self._own = _own()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method in (f"/{name}/ServerReflectionInfo" for name in NAMES):
            return grpc.stream_stream_rpc_method_handler(self._serve)
        return None

    async def _serve(self, _: Any, context: Any) -> None:
        try:
            visitor = self._visitors.of(head_of(text_of(context.invocation_metadata())))
            with self._visitors.stay(visitor, None) as stay:
                await self._answers(context, visitor, stay)
        except MicroError as error:
            await context.abort(code_of(error), message_of(error))

    async def _answers(self, context: Any, visitor: Visitor, stay: Stay) -> None:
        """One to each question. Raises when the visitor's token has ended."""
        async with contextlib.aclosing(_until(self._leaving, stay, context)) as bodies:
            async for body in bodies:
                try:
                    asked = reflection_pb2.ServerReflectionRequest.FromString(body)
                except DecodeError:
                    await context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT, "this is no ServerReflectionRequest"
                    )
                await context.write(self._answer(asked, visitor).SerializeToString())

    def _answer(
        self, asked: reflection_pb2.ServerReflectionRequest, visitor: Visitor
    ) -> reflection_pb2.ServerReflectionResponse:
        answer = reflection_pb2.ServerReflectionResponse(
            valid_host=asked.host, original_request=asked
        )
        kind = asked.WhichOneof("message_request")
        if kind == "list_services":
            listed = answer.list_services_response.service
            for name in (*self._listed(visitor), *NAMES, health.NAME):
                listed.add(name=name)
            return answer
        if kind == "file_by_filename":
            wanted = asked.file_by_filename
            files = self._by_name(wanted, visitor)
        elif kind == "file_containing_symbol":
            wanted = asked.file_containing_symbol
            files = self._by_symbol(wanted, visitor)
        elif kind == "all_extension_numbers_of_type":
            wanted = asked.all_extension_numbers_of_type
            files = self._by_symbol(wanted, visitor)
            if files:
                answer.all_extension_numbers_response.base_type_name = wanted
                return answer
        else:  # there are no extensions
            wanted, files = "", []
        if files:
            answer.file_descriptor_response.file_descriptor_proto.extend(files)
        else:
            code, text = grpc.StatusCode.NOT_FOUND.value
            answer.error_response.error_code = code
            answer.error_response.error_message = f"{text}: {wanted[:MAX_NAME]}"
        return answer

    def _shown(self, visitor: Visitor) -> Shown:
        def shown(service: str, endpoint: str) -> bool:
            return self._visitors.allows(visitor, Resource(name=service, endpoint=endpoint))

        return shown

    def _listed(self, visitor: Visitor) -> list[str]:
        return self._catalogues.of(visitor.namespace).services(self._shown(visitor))

    def _package(self, name: str, visitor: Visitor) -> Description | None:
        """What the caller may call of a package."""
        return self._catalogues.of(visitor.namespace).package(name, self._shown(visitor))

    def _by_name(self, name: str, visitor: Visitor) -> list[bytes]:
        package = name.removeprefix("micro/").removesuffix(".proto")
        described = self._package(package, visitor) if name != package else None
        pools = [self._own]
        if described is not None:
            pools.append(described.pool)
        return _first(pools, [name], "FindFileByName")

    def _by_symbol(self, name: str, visitor: Visitor) -> list[bytes]:
        """A pool knows a service by its name but not its methods."""
        name = name.removeprefix(".")[:MAX_NAME]
        names = [name, name.rpartition(".")[0]]
        pools, package = [self._own], name
        while package := package.rpartition(".")[0]:
            described = self._package(package, visitor)
            if described is not None:
                pools.append(described.pool)
        return _first(pools, names, "FindFileContainingSymbol")


def _first(pools: list[descriptor_pool.DescriptorPool], names: list[str], how: str) -> list[bytes]:
    """The first file that is found, then all that it imports."""
    for pool in pools:
        for name in names:
            try:
                file = getattr(pool, how)(name)
            except KeyError:
                continue
            found = {file.name: file}
            _gather(file, found)
            return [bytes(one.serialized_pb) for one in found.values()]
    return []


def _gather(file: Any, found: dict[str, Any]) -> None:
    for needed in file.dependencies:
        if needed.name not in found:
            found[needed.name] = needed
            _gather(needed, found)


async def _until(leaving: asyncio.Event, stay: Stay, context: Any) -> AsyncGenerator[bytes, None]:
    """The messages of a client until it ends or the door leaves. Raises why its stay is over."""
    left = asyncio.ensure_future(leaving.wait())
    try:
        while not left.done():
            reading = asyncio.ensure_future(context.read())
            try:
                waits = [reading, left, stay.over]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                stay.check()
                if not reading.done():
                    return
                message = reading.result()
            finally:
                reading.cancel()
            if message is grpc.aio.EOF:
                return
            yield message
    finally:
        left.cancel()
