"""The bytes of a request: the body as it came, or JSON made of path, query and form.

Where several say the same field, the path wins over the body and the body over the query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from micro_ray.api.paths import Target
from micro_ray.errors import BadRequest, Cancelled, Timeout, TooLarge, UnsupportedMedia

__all__ = ["build", "query_fields", "read_body"]

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

JSON = "application/json"
MSGPACK = "application/msgpack"
OCTETS = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"
PASSED = (JSON, MSGPACK, OCTETS)
MAX_FIELDS = 1000
MAX_DEPTH = 16

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


async def read_body(receive: Receive, limit: int, timeout: float) -> bytes:
    """The whole body. Raises TooLarge over ``limit`` bytes, Timeout when it takes longer than
    ``timeout`` seconds, Cancelled when the client goes away."""
    message = await _next(receive, timeout)
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        parts, size = [body], len(body)
        async with _deadline(timeout):
            while message.get("more_body", False):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("api", "the client went away")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise TooLarge("api", f"body over {limit} bytes")
        body = b"".join(parts)
    if len(body) > limit:
        raise TooLarge("api", f"body over {limit} bytes")
    return body


async def _next(receive: Receive, timeout: float) -> Mapping[str, Any]:
    async with _deadline(timeout):
        message = await receive()
    if message["type"] == "http.disconnect":
        raise Cancelled("api", "the client went away")
    return message


class _deadline:  # noqa: N801 - used as the statement `async with _deadline(...)`
    """``asyncio.timeout`` whose error says what was late."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise Timeout("api", "the body of the request did not arrive in time") from None


def build(
    method: str, target: Target, query: bytes, content: str, body: bytes
) -> tuple[bytes, str]:
    """The bytes for the service and their content type. Raises BadRequest that names the field,
    UnsupportedMedia for content types nobody reads."""
    plain = not query and not target.fields
    if body or method not in ("GET", "HEAD", "DELETE"):
        kind = content.partition(";")[0].strip().lower() or JSON
        # curl -d says "form" for whatever is posted: what begins like JSON is JSON.
        if kind == FORM and body[:1] in (b"{", b"["):
            kind = JSON
        if kind == FORM:
            fields = _fields(body.decode("utf-8", "replace"), target, "form")
            return _merged(target, query, fields), JSON
        if kind.endswith("+json") or kind == "text/json":
            kind = JSON
        if kind not in PASSED:
            raise UnsupportedMedia(
                "api", f"content type {kind!r}; send {', '.join(PASSED)} or {FORM}"
            )
        if plain or kind != JSON:
            return body or b"{}", kind
        try:
            given = _decode(body or b"{}")
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequest("api", f"malformed JSON body: {error}") from None
        if not isinstance(given, dict):
            raise BadRequest("api", "the body must be a JSON object beside fields in path or query")
        return _merged(target, query, given), JSON
    if plain:
        return b"{}", JSON
    return _merged(target, query, {}), JSON


def _merged(target: Target, query: bytes, body: Mapping[str, Any]) -> bytes:
    merged = query_fields(query, target)
    merged.update(body)
    for name, text in target.fields.items():
        _put(merged, name, _typed(text, _schema_of(target.request, name), name), name)
    return _encode(merged)


def query_fields(query: bytes, target: Target) -> dict[str, Any]:
    """The fields of a query string, by the types the endpoint published."""
    return _fields(query.decode("latin-1"), target, "query") if query else {}


def _fields(text: str, target: Target, where: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise BadRequest("api", f"{where} is not UTF-8") from None
    except ValueError:
        raise TooLarge("api", f"over {MAX_FIELDS} fields in the {where}") from None
    fields: dict[str, Any] = {}
    many: dict[str, list[str]] = {}
    for name, value in pairs:
        many.setdefault(name.replace("[]", "").replace("[", ".").replace("]", ""), []).append(value)
    for name, values in many.items():
        schema = _schema_of(target.request, name)
        if schema.get("type") == "array":
            item = _resolve(target.request, schema.get("items", {}))
            _put(fields, name, [_typed(v, item, name) for v in values], name)
        else:
            _put(fields, name, _typed(values[-1], schema, name), name)
    return fields


def _put(fields: dict[str, Any], path: str, value: Any, where: str) -> None:
    *parents, last = path.split(".")
    if len(parents) >= MAX_DEPTH:
        raise TooLarge("api", f"field {where[:80]!r} is nested over {MAX_DEPTH} deep")
    for parent in parents:
        inner = fields.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise BadRequest("api", f"field {where!r} is given both as a value and as an object")
        fields = inner
    fields[last] = value


def _resolve(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references and take the first typed choice of ``anyOf``."""
    for _ in range(8):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            schema = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
        elif "anyOf" in schema:
            choices = [c for c in schema["anyOf"] if c.get("type") != "null"]
            if len(choices) != 1:
                return {}
            schema = choices[0]
        else:
            break
    return schema


def _schema_of(root: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    schema = _resolve(root, root)
    for part in path.split("."):
        schema = _resolve(root, schema.get("properties", {}).get(part, {}))
    return schema


def _typed(text: str, schema: Mapping[str, Any], name: str) -> Any:
    """A text as the type of its field; without one, as JSON if it is a number, boolean or null."""
    kind = schema.get("type")
    try:
        if kind == "string":
            return text
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "boolean":
            lowered = text.lower()
            if lowered in ("true", "1", "yes", ""):
                return True
            if lowered in ("false", "0", "no"):
                return False
            raise ValueError
        if kind in ("object", "array"):
            return _decode(text.encode())
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise BadRequest("api", f"field {name!r}: {text[:80]!r} is no {kind}") from None
    try:
        value = _decode(text.encode())
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if not isinstance(value, dict | list) else text
