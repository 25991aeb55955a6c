"""From texts to typed fields: query strings, forms and path segments as the JSON that an endpoint's
published schema asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from micro_ray.errors import BadRequest, TooLarge

__all__ = ["pairs", "parse_fields", "put", "schema_of", "typed"]

MAX_FIELDS = 1000
MAX_DEPTH = 16

_TRUE = ("true", "1", "yes", "on", "")
_FALSE = ("false", "0", "no", "off")
_INTEGER = re.compile(r"[+-]?[0-9]{1,400}", re.ASCII)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Schema = Mapping[str, Any]


def pairs(text: bytes, where: str) -> list[tuple[str, str]]:
    """Names and values as they come. Raises BadRequest, TooLarge over 1000."""
    try:
        return parse_qsl(
            text.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except UnicodeDecodeError:
        raise BadRequest("api", f"{where} is not UTF-8") from None
    except ValueError:
        raise TooLarge("api", f"over {MAX_FIELDS} fields in the {where}") from None


def parse_fields(text: bytes, request: Schema, where: str) -> dict[str, Any]:
    """The fields of a query string or form.

    ``a.b`` and ``a[b]`` are nested. A field of an array takes all values of its name, in order;
    of any other the last one counts. Raises BadRequest that names the field, TooLarge.
    """
    many: dict[str, list[str]] = {}
    for name, value in pairs(text, where):
        flat = name.replace("[]", "").replace("[", ".").replace("]", "")
        many.setdefault(flat, []).append(value)
    fields: dict[str, Any] = {}
    for name, values in many.items():
        schema, _ = _resolved(request, schema_of(request, name))
        if _kind(schema) == "array":
            put(fields, name, _items(values, schema, request, name))
        else:
            put(fields, name, typed(values[-1], schema_of(request, name), request, name))
    return fields


def put(fields: dict[str, Any], name: str, value: Any, *, over: bool = False) -> None:
    """Set a field by its dotted name; what is there already is an error unless ``over``."""
    *parents, last = name.split(".")
    if len(parents) >= MAX_DEPTH:
        raise TooLarge("api", f"field {name[:80]!r} is nested over {MAX_DEPTH} deep")
    for parent in parents:
        inner = fields.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise _twice(name)
        fields = inner
    if last in fields and not over:
        raise _twice(name)
    fields[last] = value


def _twice(name: str) -> BadRequest:
    return BadRequest("api", f"field {name[:80]!r} is given both as a value and as an object")


def schema_of(request: Schema, name: str) -> Schema:
    """The schema of a field by its dotted name, ``{}`` where nothing is said of it."""
    schema = request
    for part in name.split("."):
        schema, _ = _resolved(request, schema)
        inner = _mapping(schema.get("properties")).get(part, schema.get("additionalProperties"))
        schema = _mapping(inner)
    return schema


def typed(text: str, schema: Schema, request: Schema, name: str) -> Any:
    """A text as the type of its field; where no type is published, as JSON if it is a number, a
    boolean or null. Raises BadRequest that names the field."""
    schema, nullable = _resolved(request, schema)
    kind = _kind(schema)
    if nullable and kind != "string" and text in ("", "null"):
        return None
    if "enum" in schema or "const" in schema:
        return _member(text, schema, name)
    try:
        if kind == "string":
            return text
        if kind == "integer":
            if not _INTEGER.fullmatch(text):
                raise ValueError
            return int(text)
        if kind == "number":
            return _number(text)
        if kind == "boolean":
            return _boolean(text)
        if kind in ("object", "array"):
            return _decode(text)
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise BadRequest("api", f"field {name[:80]!r}: {text[:80]!r} is no {kind}") from None
    try:
        value = _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return text if isinstance(value, dict | list | str) else value


def _items(values: Sequence[str], schema: Schema, request: Schema, name: str) -> list[Any]:
    first = schema.get("prefixItems")
    rest = _mapping(schema.get("items"))
    kinds = [_mapping(item) for item in first] if isinstance(first, list | tuple) else []
    return [
        typed(value, kinds[i] if i < len(kinds) else rest, request, name)
        for i, value in enumerate(values)
    ]


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or not text.isascii() or "_" in text:
        raise ValueError
    return number


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in (*_TRUE, *_FALSE):
        raise ValueError
    return lowered in _TRUE


def _member(text: str, schema: Schema, name: str) -> Any:
    """The one of an enumeration that is written so."""
    members = schema["enum"] if "enum" in schema else [schema["const"]]
    shown = []
    for member in members if isinstance(members, list | tuple) else []:
        form = member if isinstance(member, str) else _encode(member).decode()
        if form == text:
            return member
        shown.append(form)
    raise BadRequest(
        "api", f"field {name[:80]!r}: {text[:80]!r} is none of {', '.join(shown[:20])}"
    )


def _mapping(node: Any) -> Schema:
    """Schemas are what a service published: anything may stand where an object should."""
    return node if isinstance(node, Mapping) else {}


def _kind(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list | tuple):
        kinds = [k for k in kind if k != "null"]
        kind = kinds[0] if len(kinds) == 1 else ""
    return kind if isinstance(kind, str) else ""


def _resolved(request: Schema, schema: Schema) -> tuple[Schema, bool]:
    """A schema with references followed and its only choice taken, and whether null is one."""
    nullable = False
    for _ in range(8):
        reference = schema.get("$ref")
        choices = schema.get("anyOf", schema.get("oneOf", schema.get("allOf")))
        if isinstance(reference, str):
            name = reference.rpartition("/")[2]
            schema = _mapping(_mapping(request.get("$defs")).get(name))
        elif isinstance(choices, list | tuple):
            kinds = [_mapping(choice) for choice in choices]
            others = [kind for kind in kinds if kind.get("type") != "null"]
            nullable = nullable or len(others) < len(kinds)
            schema = others[0] if len(others) == 1 else {}
        else:
            break
    kind = schema.get("type")
    return schema, nullable or (isinstance(kind, list | tuple) and "null" in kind)
