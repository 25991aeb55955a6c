"""Protobuf messages of described methods as JSON, and back."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from micro_ray.errors import BadRequest, InternalError, MicroError, TooLarge
from micro_ray.serve.descriptors import Method

__all__ = ["request_of", "response_of"]

#: Deepest value: protobuf's own parsers go no deeper than 100 messages, and a Value is three.
MAX_DEPTH = 32
#: Whole numbers that a double holds exactly.
EXACT = 2**53

_VALUE, _BYTES = "google.protobuf.Value", "google.protobuf.BytesValue"
_encode, _decode = msgspec.json.encode, msgspec.json.Decoder().decode
Absent = Mapping[str, Mapping[str, Any]]


def request_of(method: Method, body: bytes) -> bytes:
    """What an endpoint takes, from the message of a client. Raises BadRequest for what is no such
    message, TooLarge for what is nested too deeply."""
    message = method.request()
    name = message.DESCRIPTOR.full_name
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise BadRequest(
            "proxy",
            f"this is no protobuf message {name}; JSON that does not begin with {{ or [ needs "
            "the metadata x-content-type: application/json",
        ) from None
    if name == _BYTES:
        raw: bytes = message.value  # type: ignore[attr-defined]  # made at run time
        return raw
    if name == _VALUE and message.WhichOneof("kind") is None:
        return b""
    try:
        return _encode(_plain(message, method.absent, 0))
    except ValueError as error:
        raise TooLarge("proxy", str(error)) from None


def response_of(method: Method, answer: bytes, *, raw: bool) -> bytes:
    """The message of an answer, which is bytes as they are (``raw``) or JSON. Raises InternalError
    for an answer that is not what the service said it would be."""
    message = method.response()
    try:
        if raw:
            message.value = answer  # type: ignore[attr-defined]  # made at run time
        elif message.DESCRIPTOR.full_name == _VALUE:
            _put_value(message, _decode(answer or b"{}"), 0)
        else:
            _put(message, _decode(answer or b"{}"), 0)
        made: bytes = message.SerializeToString()
    except MicroError:
        raise
    except (ValueError, TypeError, RecursionError, msgspec.DecodeError) as error:
        name = message.DESCRIPTOR.full_name
        raise InternalError(
            "proxy", f"the answer is no {name}: {error}; with the metadata x-content-type: "
            "application/json it comes as it is"
        ) from None  # fmt: skip
    return made


# -- to JSON ---------------------------------------------------------------------------------------


def _plain(message: Any, absent: Absent, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"the message is nested over {MAX_DEPTH} deep")
    name = message.DESCRIPTOR.full_name
    if name == _VALUE:
        return _plain_value(message, depth)
    found = dict(absent.get(name, {}))
    for field, value in message.ListFields():
        if _is_map(field):
            made: Any = {key: _plain_one(value[key], absent, depth) for key in value}
        elif field.is_repeated:
            made = [_plain_one(item, absent, depth) for item in value]
        else:
            made = _plain_one(value, absent, depth)
        found[field.json_name] = made
    return found


def _plain_one(value: Any, absent: Absent, depth: int) -> Any:
    if isinstance(value, Message):
        return _plain(value, absent, depth + 1)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _plain_value(message: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"the message is nested over {MAX_DEPTH} deep")
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        fields = message.struct_value.fields
        return {key: _plain_value(fields[key], depth + 1) for key in fields}
    if kind == "list_value":
        return [_plain_value(item, depth + 1) for item in message.list_value.values]
    if kind == "number_value":
        number: float = message.number_value
        return int(number) if number.is_integer() and abs(number) <= EXACT else number
    return None if kind in (None, "null_value") else getattr(message, kind)


# -- from JSON -------------------------------------------------------------------------------------


def _put(message: Any, value: Any, depth: int) -> None:
    """Properties that the message has no field for are left out."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested over {MAX_DEPTH} deep")
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object was declared")
    for field in message.DESCRIPTOR.fields:
        item = value.get(field.json_name)
        if item is None and (field.json_name not in value or not _is_value(field)):
            continue
        if _is_map(field):
            _put_map(message, field, item, depth)
        elif field.is_repeated:
            if not isinstance(item, list):
                raise TypeError(f"{field.json_name} is {type(item).__name__}, not a list")
            _put_many(getattr(message, field.name), field, item, depth)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _put_message(inner, item, depth + 1)
        else:
            setattr(message, field.name, _scalar(field, item))


def _put_many(into: Any, field: FieldDescriptor, items: list[Any], depth: int) -> None:
    if field.message_type is None:
        into.extend(_scalar(field, item) for item in items)
    else:
        for item in items:
            _put_message(into.add(), item, depth + 1)


def _put_map(message: Any, field: FieldDescriptor, items: Any, depth: int) -> None:
    if not isinstance(items, dict):
        raise TypeError(f"{field.json_name} is {type(items).__name__}, not an object")
    into = getattr(message, field.name)
    assert field.message_type is not None
    values = field.message_type.fields_by_name["value"]
    for key, item in items.items():
        if values.message_type is None:
            into[key] = _scalar(values, item)
        else:
            _put_message(into[key], item, depth + 1)


def _put_message(message: Any, value: Any, depth: int) -> None:
    if message.DESCRIPTOR.full_name == _VALUE:
        _put_value(message, value, depth)
    else:
        _put(message, value, depth)


def _put_value(message: Any, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested over {MAX_DEPTH} deep")
    if value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        if isinstance(value, int) and abs(value) > EXACT:
            raise ValueError(f"{value} does not fit into a number of protobuf")
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        for key, item in value.items():
            _put_value(message.struct_value.fields[key], item, depth + 1)
    else:
        message.list_value.SetInParent()
        for item in value:
            _put_value(message.list_value.values.add(), item, depth + 1)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_BYTES and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:  # also what has other than ASCII
            raise ValueError(f"{field.json_name} is not base64") from None
    if kind == FieldDescriptor.TYPE_DOUBLE and isinstance(value, int) and value is not True:
        return float(value)
    if kind == FieldDescriptor.TYPE_INT64 and isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else value
    return value


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return field.is_repeated and kind is not None and kind.GetOptions().map_entry


def _is_value(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.full_name == _VALUE and not field.is_repeated
