"""The endpoints of a service as protobuf: methods and messages made from their JSON Schemas, for
clients that know a service by reflection alone.

The package is the service's name, a protobuf service is a handler, a method an endpoint. What a
schema says is a message with a field per property: text, numbers, bytes and messages as they are,
a list as ``repeated``, a dictionary as a ``map``. What protobuf has no type for (unions, lists of
lists, anything at all) is ``google.protobuf.Value``, bytes by themselves ``BytesValue``. A field's
number is made from its name, so that it stays when a type gets another field; a field that stands
by itself is ``optional``, so that what is not said is not said to the service either.

Schemas come from whoever registers a service: nothing in one may raise here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    struct_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message

from micro_ray.router import Entry
from micro_ray.serve.message_types import PLAIN, Top, named

__all__ = ["Description", "Method", "describe", "package_of", "service_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The messages of an endpoint. ``absent`` are, per message by its full name, the properties
    that must be there and cannot be told from absent in protobuf, with what stands for them."""

    request: type[Message]
    response: type[Message]
    absent: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A service. ``pool`` knows its ``file`` and what that imports; ``methods`` are by endpoint."""

    entry: Entry
    pool: descriptor_pool.DescriptorPool
    file: str
    methods: Mapping[str, Method]


def package_of(service: str) -> str:
    """The protobuf package of a service: its name, in letters that protobuf allows."""
    return ".".join(named(part) for part in service.split("."))


def service_of(service: str, endpoint: str) -> str:
    """The full name of the protobuf service that has an endpoint; blank for a name that gRPC
    cannot call."""
    handler, _, method = endpoint.partition(".")
    if not (PLAIN.fullmatch(handler) and PLAIN.fullmatch(method)):
        return ""
    return f"{package_of(service)}.{handler}"


def describe(entry: Entry) -> Description:
    """The description of a service. Never raises for what it has published: types that cannot be
    described are Values."""
    try:
        return _describe(entry, plain=False)
    except (TypeError, ValueError, KeyError, RecursionError):
        return _describe(entry, plain=True)


def _describe(entry: Entry, *, plain: bool) -> Description:
    package = package_of(entry.service)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"micro/{package}.proto",
        package=package,
        syntax="proto3",
        dependency=[struct_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name],
    )
    services: dict[str, descriptor_pb2.ServiceDescriptorProto] = {}
    absent: dict[str, dict[str, Any]] = {}
    made: dict[str, tuple[str, str]] = {}
    for endpoint in sorted(entry.endpoints, key=lambda found: found.name):
        if not service_of(entry.service, endpoint.name):
            continue
        handler, _, name = endpoint.name.partition(".")
        if handler not in services:
            services[handler] = file.service.add(name=handler)
        service = services[handler]
        if name in (method.name for method in service.method):
            continue
        types = []
        for schema, kind in ((endpoint.request, "Request"), (endpoint.response, "Response")):
            top = Top(file, f"{handler}{name}{kind}", {} if plain else schema, absent)
            types.append(top.make())
        _explain(file, service, handler, endpoint.metadata.get("description", ""))
        service.method.add(
            name=name,
            input_type=types[0],
            output_type=types[1],
            client_streaming=endpoint.stream in ("client", "bidi"),
            server_streaming=endpoint.stream in ("server", "bidi"),
        )
        made[endpoint.name] = (types[0], types[1])
    pool = descriptor_pool.DescriptorPool()
    for known in (struct_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())

    def class_of(name: str) -> type[Message]:
        found: type[Message] = message_factory.GetMessageClass(
            pool.FindMessageTypeByName(name.removeprefix("."))
        )
        return found

    methods = {
        name: Method(request=class_of(request), response=class_of(response), absent=absent)
        for name, (request, response) in made.items()
    }
    return Description(entry=entry, pool=pool, file=file.name, methods=methods)


def _explain(file: Any, service: Any, handler: str, text: str) -> None:
    """The comment of the method that is added next."""
    if text:
        at = [s.name for s in file.service].index(handler)
        path = [6, at, 2, len(service.method)]
        file.source_code_info.location.add(path=path, span=[0, 0, 0], leading_comments=f" {text}\n")
