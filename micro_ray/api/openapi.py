"""OpenAPI 3.1 of every service in the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from micro_ray.api.paths import METHODS, idempotent_of, methods_of, templates_of
from micro_ray.registry import Endpoint
from micro_ray.router.table import Table

__all__ = ["document"]

_ERROR = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "code": {"type": "integer"},
        "detail": {"type": "string"},
        "status": {"type": "string"},
        "retry_after": {"type": "number"},
    },
    "required": ["id", "code", "detail", "status"],
}
_BODILESS = ("get", "delete")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9._-]")
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_JSON, _LINES, _OCTETS = "application/json", "application/x-ndjson", "application/octet-stream"
_ERROR_REF = {"$ref": "#/components/schemas/Error"}
#: Deepest schema that is shown; beyond it anything goes.
MAX_DEPTH = 64


def document(
    table: Table,
    namespace: str,
    shown: Callable[[str, str], bool] = lambda _service, _endpoint: True,
) -> bytes:
    """The document as JSON, of the endpoints that ``shown(service, endpoint)`` accepts. One is
    shown at the templates it binds, or else at the path of the rule; where two bind the same, the
    one whose service and name come first."""
    paths: dict[str, dict[str, Any]] = {}
    spelled: dict[str, str] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for service in table.services(namespace):
        entry = table.entry(namespace, service)
        for endpoint in sorted(entry.endpoints if entry else (), key=lambda e: e.name):
            if not shown(service, endpoint.name):
                continue
            operation = _Shown(service, endpoint, schemas).operation
            for path, method in _places(service, endpoint):
                # Paths that differ in the names of their parameters only are one path.
                path = spelled.setdefault(_PARAMETER.sub("{}", path), path)
                operations = paths.setdefault(path, {})
                if method not in operations:
                    operations[method] = operation(path, method)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": f"micro services of {namespace}", "version": str(table.revision)},
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": schemas},
        }
    )


def _places(service: str, endpoint: Endpoint) -> Iterator[tuple[str, str]]:
    """(path, method) of each place where an endpoint answers."""
    templates = templates_of(endpoint)
    methods = [m.lower() for m in methods_of(endpoint) if m in METHODS] or ["post"]
    for template in templates:
        for method in methods:
            yield template.shown, method
    if not templates:
        handler, _, name = endpoint.name.partition(".")
        yield f"/{service.replace('.', '/')}/{handler.lower()}/{name.lower()}", "post"


class _Shown:
    """One endpoint as operations; the definitions of its schemas become components."""

    def __init__(self, service: str, endpoint: Endpoint, schemas: dict[str, Any]) -> None:
        self._service = service
        self._endpoint = endpoint
        self._name = f"{service}.{endpoint.name}"
        self._ids = 0
        self._fields, self._required = _fields(endpoint.request)
        self._request = _Schemas(endpoint.request, f"{self._name}.q", schemas)
        self._response = _Schemas(endpoint.response, f"{self._name}.r", schemas)

    def operation(self, path: str, method: str) -> dict[str, Any]:
        """The operation of one place; each call gives another id."""
        self._ids += 1
        operation: dict[str, Any] = {
            "operationId": self._name if self._ids == 1 else f"{self._name}-{self._ids}",
            "tags": [self._service],
            "responses": {
                "200": {"description": "The answer", "content": self._answer()},
                "default": {"description": "An error", "content": {_JSON: {"schema": _ERROR_REF}}},
            },
        }
        if self._endpoint.metadata.get("description"):
            operation["summary"] = self._endpoint.metadata["description"]
        idempotent = idempotent_of(self._endpoint)
        if idempotent is not None:
            operation["x-idempotent"] = idempotent
        captured = _PARAMETER.findall(path)
        parameters = [self._parameter(name, "path", True) for name in captured]
        if method in _BODILESS:
            others = [name for name in self._fields if name not in captured]
            parameters += [self._parameter(n, "query", n in self._required) for n in others]
        else:
            operation["requestBody"] = self._body(captured)
        if parameters:
            operation["parameters"] = parameters
        return operation

    def _parameter(self, name: str, where: str, required: bool) -> dict[str, Any]:
        schema = self._request.show(self._fields.get(name, {"type": "string"}))
        shown = {"name": name, "in": where, "required": required, "schema": schema}
        if where == "query" and schema.get("type") == "boolean":
            shown["allowEmptyValue"] = True  # ``?deep`` and ``?deep=`` are true
        return shown

    def _body(self, captured: Sequence[str]) -> dict[str, Any]:
        """What a body may be; what the path says it need not say again."""
        if self._endpoint.request.get("contentEncoding") == "binary":
            return {"content": {_OCTETS: {}}}
        streams = self._endpoint.stream in ("client", "bidi")
        needed = [name for name in self._required if name not in captured]
        schema = self._endpoint.request
        if set(captured) & set(self._fields):
            rest = {k: v for k, v in self._fields.items() if k not in captured}
            schema = {**_object(schema), "properties": rest, "required": needed}
        media = {_LINES if streams else _JSON: {"schema": self._request.show(schema)}}
        # Nothing is as good as an object without fields.
        return (
            {"content": media, "required": True} if needed and not streams else {"content": media}
        )

    def _answer(self) -> dict[str, Any]:
        if self._endpoint.response.get("contentEncoding") == "binary":
            return {_OCTETS: {}}
        schema = {"schema": self._response.show(self._endpoint.response)}
        if self._endpoint.stream in ("server", "bidi"):
            return {_LINES: schema, "text/event-stream": schema}
        return {_JSON: schema}


def _object(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a request, which may be a reference."""
    schema: Any = request
    for _ in range(8):
        reference = schema.get("$ref")
        definitions = request.get("$defs")
        if not isinstance(reference, str) or not isinstance(definitions, Mapping):
            break
        schema = definitions.get(reference.rpartition("/")[2])
        if not isinstance(schema, Mapping):
            schema = {}
    return schema if isinstance(schema, Mapping) else {}


def _fields(request: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The fields of a request and those that must be there."""
    schema = _object(request)
    properties, required = schema.get("properties"), schema.get("required")
    return (
        properties if isinstance(properties, Mapping) else {},
        tuple(required) if isinstance(required, list | tuple) else (),
    )


class _Schemas:
    """The definitions of one schema as components, under names of their own."""

    def __init__(self, root: Mapping[str, Any], prefix: str, schemas: dict[str, Any]) -> None:
        self._prefix = prefix
        definitions = root.get("$defs")
        self._known = definitions if isinstance(definitions, Mapping) else {}
        for name, definition in self._known.items():
            schemas[self._component(name)] = self.show(definition)

    def show(self, schema: Any) -> Any:
        """A part of the schema that refers to the components; a dangling reference is dropped."""
        return self._node(schema, MAX_DEPTH) if isinstance(schema, Mapping) else {}

    def _component(self, name: str) -> str:
        return _NOT_IN_NAMES.sub("_", f"{self._prefix}.{name}")

    def _node(self, node: Any, depth: int) -> Any:
        if depth == 0:
            return {}
        if isinstance(node, list | tuple):
            return [self._node(item, depth - 1) for item in node]
        if not isinstance(node, Mapping):
            return node
        shown = {k: self._node(v, depth - 1) for k, v in node.items() if k != "$defs"}
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.rpartition("/")[2]
            del shown["$ref"]
            if name in self._known:
                shown["$ref"] = f"#/components/schemas/{self._component(name)}"
        return shown
