"""One request or answer as a protobuf message, made from its JSON Schema.

Schemas come from whoever registers a service. What a schema says that protobuf has no type for, or
that is no schema, is a Value; what makes a message that protobuf refuses, ``descriptors.py`` sees.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2

__all__ = ["PLAIN", "Top", "named"]

#: Fields of one message with all that is in it; what is beyond is a Value. Deepest ``$ref`` to a
#: ``$ref``, and messages within messages that have no name.
MAX_FIELDS, MAX_REFERENCES, MAX_DEPTH = 1000, 16, 32
#: Field numbers are below it, and not those that protobuf keeps for itself.
NUMBERS, KEPT, KEPT_END = 2**28, 19_000, 20_000

VALUE, BYTES = ".google.protobuf.Value", ".google.protobuf.BytesValue"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "integer": _Field.TYPE_INT64,
    "number": _Field.TYPE_DOUBLE,
    "boolean": _Field.TYPE_BOOL,
}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Type:
    """What a schema is as the type of a field."""

    kind: int = _Field.TYPE_MESSAGE
    name: str = ""
    many: bool = False
    values: _Type | None = None  # of a map
    nullable: bool = False

    @property
    def single(self) -> bool:
        """Whether it may be an item of a list or a map."""
        return not (self.many or self.values or self.nullable)


ANY = _Type(name=VALUE)


class Top:
    """The message of a request or an answer. What is in it is defined in it, so that equal names
    of two endpoints do not meet."""

    def __init__(self, file: Any, name: str, schema: Schema, absent: dict[str, Any]) -> None:
        self._file = file
        self._name = name
        self._schema = schema
        self._absent = absent
        defined = schema.get("$defs")
        self._defined: Schema = defined if isinstance(defined, Mapping) else {}
        self._known: dict[str, str] = {}
        self._taken: set[str] = set()
        self._left = MAX_FIELDS

    def make(self) -> str:
        """The name of its type."""
        schema, _ = self._resolved(self._schema)
        if schema.get("contentEncoding") == "binary":
            return BYTES
        if not _is_message(schema):
            return VALUE
        name = self._name
        taken = {message.name for message in self._file.message_type}
        taken |= {service.name for service in self._file.service}
        while name in taken:
            name += "_"
        self._proto = self._file.message_type.add(name=name)
        self._full = f"{self._file.package}.{name}"
        self._fill(self._proto, self._full, schema, 0)
        return f".{self._full}"

    def _fill(self, proto: Any, full: str, schema: Schema, depth: int) -> None:
        properties: Mapping[Any, Any] = schema["properties"]
        required = schema.get("required")
        needed = set(map(str, required)) if isinstance(required, list | tuple) else set()
        named = _fields(properties)
        if proto is self._proto:
            self._taken |= {name for name, _ in named.values()}
        absent: dict[str, Any] = {}
        for key, (name, number) in named.items():
            self._left -= 1
            found = self._type(properties[key], name, depth + 1) if self._left > 0 else ANY
            self._add(proto, full, key, name, number, found)
            if key in needed:
                if found.values is not None:
                    absent[key] = {}
                elif found.many:
                    absent[key] = []
                elif found.nullable:
                    absent[key] = None
        self._absent[full] = absent
        alone = [field for field in proto.field if field.proto3_optional]
        for at, field in enumerate(alone):
            oneof = f"_{field.name}"
            while oneof in self._taken or oneof in (f.name for f in proto.field):
                oneof = f"X{oneof}"
            proto.oneof_decl.add(name=oneof)
            field.oneof_index = at

    def _add(self, proto: Any, full: str, key: str, name: str, number: int, found: _Type) -> None:
        field = proto.field.add(
            name=name, json_name=key, number=number, label=_Field.LABEL_OPTIONAL
        )
        if found.values is not None:
            entry = "".join(p[:1].upper() + p[1:] for p in name.split("_")) + "Entry"
            taken = {f.name for f in proto.field} | {n.name for n in proto.nested_type}
            if entry not in taken and not (proto is self._proto and entry in self._taken):
                self._map(proto, entry, found.values)
                field.label = _Field.LABEL_REPEATED
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{full}.{entry}"
                return
            found = ANY
        field.type = found.kind
        if found.name:
            field.type_name = found.name
        if found.many:
            field.label = _Field.LABEL_REPEATED
        elif not found.name:
            field.proto3_optional = True

    def _map(self, proto: Any, entry: str, values: _Type) -> None:
        pair = proto.nested_type.add(name=entry)
        pair.options.map_entry = True
        pair.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        value = pair.field.add(
            name="value", number=2, type=values.kind, label=_Field.LABEL_OPTIONAL
        )
        if values.name:
            value.type_name = values.name
        self._taken.add(entry)

    def _type(self, given: Any, hint: str, depth: int) -> _Type:
        schema, reference = self._resolved(given)
        if depth > MAX_DEPTH:
            return ANY
        branches = schema.get("anyOf")
        if isinstance(branches, list | tuple):
            rest = [b for b in branches if not _is_null(b)]
            if len(rest) != 1 or len(rest) == len(branches):
                return ANY
            inner = self._type(rest[0], hint, depth + 1)
            return _nullable(inner)
        kind = schema.get("type")
        if isinstance(kind, list | tuple) and len(kind) == 2 and "null" in kind:
            (other,) = [k for k in kind if k != "null"] or [None]
            return _nullable(self._type({**schema, "type": other}, hint, depth + 1))
        if not isinstance(kind, str):
            return self._enumerated(schema)
        if kind == "array":
            items = self._type(schema.get("items", {}), hint, depth + 1)
            if "prefixItems" in schema:
                return ANY
            return _Type(kind=items.kind, name=items.name, many=True) if items.single else _many()
        if kind == "object":
            return self._object(schema, reference, hint, depth)
        if kind == "string" and schema.get("contentEncoding") == "base64":
            return _Type(kind=_Field.TYPE_BYTES)
        return _Type(kind=_SCALARS[kind]) if kind in _SCALARS else ANY

    def _object(self, schema: Schema, reference: str, hint: str, depth: int) -> _Type:
        if not _is_message(schema):
            values = schema.get("additionalProperties")
            if not isinstance(values, Mapping) or schema.get("properties"):
                return ANY
            inner = self._type(values, hint, depth + 1)
            return _Type(values=inner if inner.single else ANY)
        if reference in self._known:
            return _Type(name=self._known[reference])
        name = named(reference or hint)
        name = name[:1].upper() + name[1:]
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        full = f"{self._full}.{name}"
        if reference:
            self._known[reference] = f".{full}"
        # A message of its own would be moved when its neighbour is added.
        proto = descriptor_pb2.DescriptorProto(name=name)
        self._fill(proto, full, schema, depth)
        self._proto.nested_type.append(proto)
        return _Type(name=f".{full}")

    def _enumerated(self, schema: Schema) -> _Type:
        values = schema.get("enum")
        values = [schema["const"]] if "const" in schema else values
        if isinstance(values, list | tuple) and values:
            if all(isinstance(value, str) for value in values):
                return _Type(kind=_Field.TYPE_STRING)
            if all(type(value) is int for value in values):
                return _Type(kind=_Field.TYPE_INT64)
        return ANY

    def _resolved(self, schema: Any) -> tuple[Schema, str]:
        """A schema that is no reference, and the name of the last one it was."""
        name = ""
        for _ in range(MAX_REFERENCES):
            if not isinstance(schema, Mapping):
                return {}, ""
            reference = schema.get("$ref")
            whole = schema.get("allOf")
            if isinstance(whole, list | tuple) and len(whole) == 1:
                schema = whole[0]
            elif not isinstance(reference, str):
                return schema, name
            else:
                name = reference.rpartition("/")[2]
                schema = self._defined.get(name)
        return {}, ""


def _is_message(schema: Schema) -> bool:
    """Whether a schema is of an object with fields of its own and no other."""
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping):
        return False
    return not schema.get("additionalProperties") and all(isinstance(k, str) for k in properties)


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _nullable(found: _Type) -> _Type:
    """A list or a dictionary that may be null is not one that may be empty."""
    if not found.single:
        return ANY
    return _Type(kind=found.kind, name=found.name, nullable=True)


def _many() -> _Type:
    return _Type(name=VALUE, many=True)


def named(text: str) -> str:
    name = _NOT_IN_NAMES.sub("_", text)
    return name if name and not name[0].isdigit() else f"_{name}"


def _fields(properties: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The name and the number of each property's field. Names are other ones without regard to
    case and underscores, too: protobuf makes JSON names of them. A property whose name will do has
    it, whichever others there are."""
    found: dict[str, tuple[str, int]] = {}
    names: set[str] = set()
    numbers: set[int] = set()
    for key in sorted(properties, key=lambda key: (not PLAIN.fullmatch(key), key)):
        name = base = named(key)
        again = 2
        while name.replace("_", "").lower() in names:
            name, again = f"{base}{again}", again + 1
        names.add(name.replace("_", "").lower())
        number = _number(key)
        while number in numbers or KEPT <= number < KEPT_END:
            number = number % NUMBERS + 1
        numbers.add(number)
        found[key] = (name, number)
    return {key: found[key] for key in properties}


def _number(key: str) -> int:
    return zlib.crc32(key.encode("utf-8", "replace")) % NUMBERS or 1
