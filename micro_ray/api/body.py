"""The bytes of a request: the body as it came, or an object made of path, query and form.

Where several say the same field, the path wins over the body and the body over the query. An
endpoint that takes bytes gets the body whatever its content type is; fields of path and query go
along as metadata, ``x-api-field-<name>``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from micro_ray.api.fields import pairs, parse_fields, put, schema_of, typed
from micro_ray.api.paths import Target
from micro_ray.errors import (
    BadRequest,
    Cancelled,
    MicroError,
    Timeout,
    TooLarge,
    UnsupportedMedia,
)

__all__ = [
    "JSON",
    "MSGPACK",
    "OCTETS",
    "ClientGone",
    "build",
    "client_gone",
    "field_metadata",
    "kind_of",
    "merged",
    "read_body",
    "too_deep",
]

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

JSON = "application/json"
MSGPACK = "application/msgpack"
OCTETS = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"
PASSED = (JSON, MSGPACK, OCTETS)
#: Methods whose requests have a body only if they say so.
BODILESS = ("GET", "HEAD", "DELETE")
#: Longest content type that goes on to a service, and all fields that go along with bytes.
MAX_CONTENT = 255
MAX_ALONG = 8192

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class ClientGone(Cancelled):
    """The client has closed its connection: there is nobody to answer."""


async def client_gone(scope: Mapping[str, Any]) -> None:
    """Raise ClientGone once the client has left, where the server can say it while it holds the
    client back (the extension ``micro.gone``); wait for ever where it cannot."""
    gone = scope.get("extensions", {}).get("micro.gone")
    await (gone() if gone is not None else asyncio.Event().wait())
    raise ClientGone("api", "the client went away")


async def read_body(
    receive: Receive, method: str, headers: Mapping[bytes, bytes], limit: int, timeout: float
) -> bytes:
    """The whole body. Raises TooLarge over ``limit`` bytes (before a byte is read, if the request
    says its length), Timeout when it takes longer than ``timeout`` seconds, ClientGone."""
    length = headers.get(b"content-length")
    if length is None and b"transfer-encoding" not in headers and method in BODILESS:
        return b""
    if length is not None and length.isdigit() and int(length) > limit:
        raise TooLarge("api", f"body of {int(length)} bytes; {limit} allowed")
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(timeout):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("api", "the client went away")
                body = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(body)
                if size > limit:
                    raise TooLarge("api", f"body over {limit} bytes")
                parts.append(body)
    except TimeoutError:
        raise Timeout("api", f"the body did not arrive within {timeout:g} s") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def kind_of(headers: Mapping[bytes, bytes]) -> str:
    """The media type of a body without its parameters; JSON when none is said."""
    content = headers.get(b"content-type")
    if content is None:
        return JSON
    kind = content.decode("latin-1").partition(";")[0].strip().lower()
    if kind.endswith("+json") or kind in ("", "text/json"):
        return JSON
    return kind


def build(
    method: str, target: Target, query: bytes, headers: Mapping[bytes, bytes], body: bytes
) -> tuple[bytes, str]:
    """The bytes for the service and their content type. Raises BadRequest that names the field,
    UnsupportedMedia for content types nobody reads, TooLarge for what is nested too deeply."""
    if target.raw_in:
        content = headers.get(b"content-type", b"").decode("latin-1")
        return body, content if 0 < len(content) <= MAX_CONTENT else OCTETS
    if not body and method in BODILESS:
        kind = JSON
    else:
        kind = kind_of(headers)
        if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
            raise UnsupportedMedia("api", "content encodings are not read; send the body as it is")
    if kind == FORM and body[:1] in (b"{", b"["):
        kind = JSON  # curl -d says "form" for whatever is posted: what begins like JSON is JSON
    if kind not in PASSED and kind != FORM:
        raise UnsupportedMedia("api", f"content type {kind!r}; send {', '.join(PASSED)} or {FORM}")
    if kind == OCTETS or (kind != FORM and not query and not target.fields):
        return body or (b"{}" if kind == JSON else b""), kind
    try:
        return _with_fields(kind, target, query, body)
    except msgspec.DecodeError as error:
        raise BadRequest("api", f"malformed {kind}: {error}") from None
    except RecursionError:
        raise too_deep() from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest("api", f"the body cannot be read: {error}") from None


def _with_fields(kind: str, target: Target, query: bytes, body: bytes) -> tuple[bytes, str]:
    if kind == FORM:
        return _encode(merged(target, query, parse_fields(body, target.request, "form"))), JSON
    packed = kind == MSGPACK
    given = (msgspec.msgpack.decode(body) if packed else _decode(body)) if body else {}
    if not isinstance(given, dict):
        raise BadRequest("api", "the body must be an object beside fields in path or query")
    whole = merged(target, query, given)
    return (msgspec.msgpack.encode(whole) if packed else _encode(whole)), kind


def merged(target: Target, query: bytes, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of path, body and query in one object."""
    fields = parse_fields(query, target.request, "query") if query else {}
    _over(fields, body)
    for name, text in target.fields.items():
        value = typed(text, schema_of(target.request, name), target.request, name)
        put(fields, name, value, over=True)
    return fields


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        inner = below.get(name)
        if isinstance(inner, dict) and isinstance(value, dict):
            _over(inner, value)
        else:
            below[name] = value


def field_metadata(target: Target, query: bytes) -> dict[str, str]:
    """What goes along with bytes, which have no place for fields."""
    along = dict(pairs(query, "query")) | dict(target.fields)
    if sum(len(name) + len(value) for name, value in along.items()) > MAX_ALONG:
        raise TooLarge("api", f"over {MAX_ALONG} characters in the fields of path and query")
    return {f"x-api-field-{name.lower()}": value for name, value in along.items()}


def too_deep() -> MicroError:
    return TooLarge("api", "the body is nested too deeply")
