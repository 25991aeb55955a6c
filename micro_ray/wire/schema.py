"""From a handler's signature to its request and response types: decoders and JSON Schemas.

A type may be a dataclass, a ``msgspec.Struct``, a pydantic model, a ``TypedDict``, a ``dict``,
``list`` or builtin of any of them, or ``bytes`` (untouched). Fields that a request has and the
type has not are ignored, so that a caller may be newer than the service.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from micro_ray.errors import BadRequest, InternalError, MicroError, TooLarge, UnsupportedMedia
from micro_ray.wire.defaults import filler

__all__ = ["JSON", "MSGPACK", "Codec", "Reader", "codec", "write"]

JSON = "application/json"
MSGPACK = "application/msgpack"
#: Content types that are decoded; a request in another one is for ``bytes`` endpoints only.
MEDIA = (JSON, MSGPACK)

#: Types whose decoders a reader keeps.
KEPT = 256
#: Largest published schema in bytes; a larger one is published as ``{}`` (any).
MAX_SCHEMA = 64 * 1024

Decode = Callable[[bytes, str], Any]
Encode = Callable[[Any, str], bytes]


def _encode_model(value: Any) -> Any:
    """What msgspec does not know: pydantic models within other types."""
    if _is_model(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no type that crosses")


def _decode_model(kind: Any, value: Any) -> Any:
    if not _is_model(kind):
        raise NotImplementedError(f"{kind!r} is no type that crosses")
    import pydantic

    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError(_first(error, "in")) from None


def _is_model(kind: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _first(error: Any, at: str) -> str:
    """The first thing that pydantic finds wrong, with its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(("$", *map(str, first["loc"])))
    return f"{first['msg']} {at} `{field}`"


_json_encode = msgspec.json.Encoder(enc_hook=_encode_model).encode
#: JSON of a value, as an answer is made of one. Raises TypeError, ValueError or RecursionError.
write = _json_encode
_msgpack_encode = msgspec.msgpack.Encoder(enc_hook=_encode_model).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How values of one type cross: ``decode(body, content)`` raises BadRequest that names the
    field, ``encode(value, content)`` InternalError."""

    schema: Mapping[str, Any]
    decode: Decode
    encode: Encode


def codec(kind: Any, where: str, what: str = "") -> Codec:
    """The codec of a type; ``where`` names the endpoint in errors, ``what`` the parameter. Raises
    TypeError for types that cannot cross."""
    if kind is bytes:
        binary = {"type": "string", "contentEncoding": "binary"}
        return Codec(schema=binary, decode=_raw_decode, encode=_raw_encode(where))
    if kind is None or kind is type(None):
        return Codec(schema={}, decode=lambda body, content: None, encode=_empty)
    if _is_model(kind):
        return _pydantic_codec(kind, where)
    try:
        schema = _bounded(_schema(kind))
        json = _json_reader(kind)
        msgpack = _whole(kind, msgspec.msgpack.Decoder(kind, dec_hook=_decode_model).decode)
    except (TypeError, NameError) as error:
        raise _no_type(kind, where, what, error) from None
    return Codec(
        schema=schema,
        decode=_decoder(json, msgpack, where),
        encode=_encoder(where),
    )


class Reader:
    """Reads JSON into types by the rules of :func:`codec`, for who is not told them: a caller's
    answers, an event's payload. The decoder of a type is made once."""

    def __init__(self) -> None:
        self._kept: dict[Any, Callable[[bytes], Any]] = {}

    def read(self, body: bytes, kind: Any) -> Any:
        """Raises ValueError or RecursionError for what is not of this type, TypeError or
        NotImplementedError for a type that cannot cross."""
        try:
            decode = self._kept.get(kind)
        except TypeError:  # Annotated with what has no hash
            return _json_reader(kind)(body)
        if decode is None:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            decode = self._kept[kind] = _json_reader(kind)
        return decode(body)


def _json_reader(kind: Any) -> Callable[[bytes], Any]:
    if kind is bytes:
        return bytes
    if kind is type(None):
        return lambda body: None
    if _is_model(kind):
        return cast(Callable[[bytes], Any], kind.model_validate_json)
    return _whole(kind, msgspec.json.Decoder(kind, dec_hook=_decode_model).decode)


def _whole(kind: Any, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    fill = filler(kind)
    return decode if fill is None else lambda body: fill(decode(body))


def _no_type(kind: Any, where: str, what: str, error: Exception) -> TypeError:
    why = str(error).splitlines()[-1]
    return TypeError(f"{where}: {what} of type {kind!r} cannot cross: {why}")


def _schema(kind: Any) -> dict[str, Any]:
    """One self-contained JSON Schema (draft 2020-12) with ``$defs``."""
    if kind is Any:
        return {}
    models: dict[str, Any] = {}

    def model_schema(kind: Any) -> dict[str, Any]:
        if not _is_model(kind):
            raise NotImplementedError
        schema: dict[str, Any] = kind.model_json_schema()
        models.update(schema.pop("$defs", {}))
        return schema

    (schema,), components = msgspec.json.schema_components(
        (kind,), schema_hook=model_schema, ref_template="#/$defs/{name}"
    )
    schema, components = dict(schema), {**models, **components}
    reference = str(schema.get("$ref", "")).rpartition("/")[2]
    if reference in components and not _mentions(components, reference):
        schema = dict(components.pop(reference))
    if components:
        schema["$defs"] = components
    return schema


def _mentions(components: Mapping[str, Any], name: str) -> bool:
    return f'"#/$defs/{name}"'.encode() in _json_encode(components)


def _bounded(schema: dict[str, Any]) -> Mapping[str, Any]:
    return schema if len(_json_encode(schema)) <= MAX_SCHEMA else {}


def _plain(content: str) -> str:
    """A media type without its parameters."""
    return content.partition(";")[0].strip().lower()


def _decoder(json: Callable[[bytes], Any], msgpack: Callable[[bytes], Any], where: str) -> Decode:
    def decode(body: bytes, content: str) -> Any:
        try:
            if content == JSON:
                return json(body or b"{}")
            if content == MSGPACK:
                return msgpack(body or b"\x80")
        except msgspec.ValidationError as error:
            raise BadRequest(where, f"wrong input: {error}") from None
        except msgspec.DecodeError as error:
            raise BadRequest(where, f"malformed {content}: {error}") from None
        except RecursionError:
            raise TooLarge(where, "the input is nested too deeply") from None
        except UnicodeDecodeError as error:
            raise BadRequest(where, f"the input is not UTF-8: {error}") from None
        return decode(body, _known(content, where))

    return decode


def _known(content: str, where: str) -> str:
    """A media type that is decoded, however it is spelled."""
    plain = _plain(content)
    if plain in MEDIA:
        return plain
    raise UnsupportedMedia(where, f"content type {content[:200]!r}; send one of {', '.join(MEDIA)}")


def _encoder(where: str) -> Encode:
    def encode(value: Any, content: str) -> bytes:
        try:
            if content == JSON or _plain(content) != MSGPACK:
                return _json_encode(value)
            return _msgpack_encode(value)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise InternalError(
                where, f"the answer cannot be sent ({type(error).__name__}: {error})"
            ) from None

    return encode


def _pydantic_codec(model: Any, where: str) -> Codec:
    import pydantic

    def decode(body: bytes, content: str) -> Any:
        try:
            if content == MSGPACK:
                return model.model_validate(msgspec.msgpack.decode(body or b"\x80"))
            if content == JSON:
                return model.model_validate_json(body or b"{}")
        except pydantic.ValidationError as error:
            raise _wrong(error, where, content) from None
        except RecursionError:
            raise TooLarge(where, "the input is nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(where, f"malformed {content}: {error}") from None
        return decode(body, _known(content, where))

    plain = _encoder(where)

    def encode(value: Any, content: str) -> bytes:
        if content == JSON and isinstance(value, pydantic.BaseModel):
            return value.model_dump_json().encode()
        return plain(value, content)

    return Codec(schema=_bounded(model.model_json_schema()), decode=decode, encode=encode)


def _wrong(error: Any, where: str, content: str) -> MicroError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] != "json_invalid":
        return BadRequest(where, f"wrong input: {_first(error, '- at')}")
    why = str(first.get("ctx", {}).get("error", first["msg"]))
    if "recursion limit" in why:
        return TooLarge(where, "the input is nested too deeply")
    return BadRequest(where, f"malformed {content}: {why}")


def _raw_decode(body: bytes, content: str) -> bytes:
    return body


def _raw_encode(where: str) -> Encode:
    def encode(value: Any, content: str) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InternalError(
                where, f"the answer must be bytes, as declared, not {type(value).__name__}"
            )
        return bytes(value)

    return encode


def _empty(value: Any, content: str) -> bytes:
    return b"\x80" if _plain(content) == MSGPACK else b"{}"


def kind_of_fields(where: str, fields: list[tuple[str, Any, Any]]) -> Any:
    """A struct type of plain parameters: (name, type, default or ``msgspec.NODEFAULT``). Raises
    TypeError for a type that cannot cross and for a default that cannot be one."""
    for field, kind, _ in fields:
        try:
            _schema(kind)
        except (TypeError, NameError) as error:
            raise _no_type(kind, where, f"parameter {field}", error) from None
    defined: list[Any] = [
        (field, kind) if default is msgspec.NODEFAULT else (field, kind, default)
        for field, kind, default in fields
    ]
    name = re.sub(r"\W", "", where) + "Request"
    try:
        return cast(Any, msgspec.defstruct(name, defined, kw_only=True))
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None
