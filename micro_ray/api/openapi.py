"""OpenAPI 3.1 of every service in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from micro_ray.registry import Endpoint
from micro_ray.router import Entry
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


def document(table: Table, namespace: str) -> bytes:
    """The document as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for entry in table.entries(namespace):
        for endpoint in entry.endpoints:
            path = _path(entry, endpoint)
            methods = endpoint.metadata.get("method", "POST").lower().split(",")
            for method in methods:
                operation = _operation(entry, endpoint, schemas, method.strip())
                paths.setdefault(path, {})[method.strip()] = operation
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": f"micro services of {namespace}", "version": str(table.revision)},
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": schemas},
        }
    )


def _path(entry: Entry, endpoint: Endpoint) -> str:
    bound = endpoint.metadata.get("path", "").split(",")[0].strip()
    if bound:
        return bound
    handler, _, method = endpoint.name.partition(".")
    service = "/".join(entry.service.split("."))
    return f"/{service}/{handler.lower()}/{method.lower()}"


def _operation(
    entry: Entry, endpoint: Endpoint, schemas: dict[str, Any], method: str
) -> dict[str, Any]:
    name = f"{entry.service}.{endpoint.name}"
    media = "application/json" if not endpoint.stream else "application/x-ndjson"
    operation: dict[str, Any] = {
        "operationId": name if method == "post" else f"{name}.{method}",
        "tags": [entry.service],
        "responses": {
            "200": {
                "description": "The answer",
                "content": {media: {"schema": _schema(endpoint.response, name + ".r", schemas)}},
            },
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if endpoint.metadata.get("description"):
        operation["summary"] = endpoint.metadata["description"]
    request = _schema(endpoint.request, name + ".q", schemas)
    if method in ("get", "delete"):
        properties = endpoint.request.get("properties", {})
        captured = endpoint.metadata.get("path", "")
        operation["parameters"] = [
            {
                "name": field,
                "in": "path" if f"{{{field}" in captured else "query",
                "required": f"{{{field}" in captured,
                "schema": _renamed(schema, name + ".q"),
            }
            for field, schema in properties.items()
        ]
    else:
        operation["requestBody"] = {"content": {media: {"schema": request}}}
    return operation


def _schema(schema: Mapping[str, Any], prefix: str, schemas: dict[str, Any]) -> Any:
    """The schema with its definitions moved to the components, under names of this endpoint."""
    for name, definition in schema.get("$defs", {}).items():
        schemas[f"{prefix}.{name}"] = _renamed(definition, prefix)
    return _renamed({k: v for k, v in schema.items() if k != "$defs"}, prefix)


def _renamed(node: Any, prefix: str) -> Any:
    if isinstance(node, Mapping):
        return {
            key: f"#/components/schemas/{prefix}.{value.rpartition('/')[2]}"
            if key == "$ref" and isinstance(value, str)
            else _renamed(value, prefix)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_renamed(item, prefix) for item in node]
    return node
