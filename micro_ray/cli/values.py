"""One value: from the text of a flag to what the field's type asks for."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from micro_ray.cli.exits import Usage
from micro_ray.cli.session import near

__all__ = ["boolean", "converted", "is_boolean", "kind", "resolved"]

Schema = Mapping[str, Any]

_TRUE = ("true", "t", "1", "yes", "on")
_FALSE = ("false", "f", "0", "no", "off")
_INTEGER = re.compile(r"[+-]?(\d+|0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: The order in which the types of a union are tried: text last, it takes anything.
_ORDER = ("integer", "number", "boolean", "array", "object", "string")


class _No(ValueError):
    """The text is no value of the type."""


def resolved(schema: Any, root: Schema) -> Schema:
    """A schema with its reference followed and its null left out; what is said beside a reference
    (default, description) stays."""
    for _ in range(16):
        if not isinstance(schema, Mapping):
            break
        beside = {k: schema[k] for k in ("default", "description") if k in schema}
        reference = schema.get("$ref")
        several = schema.get("anyOf", schema.get("oneOf", schema.get("allOf")))
        if isinstance(reference, str):
            schema = {**root.get("$defs", {}).get(reference.rpartition("/")[2], {}), **beside}
        elif isinstance(several, Sequence):
            typed = [c for c in several if isinstance(c, Mapping) and c.get("type") != "null"]
            if len(typed) != 1:
                return {"anyOf": [resolved(part, root) for part in typed], **beside}
            schema = {**typed[0], **beside}
        else:
            break
    return schema if isinstance(schema, Mapping) else {}


def kind(schema: Schema, root: Schema) -> str:
    """How help names a type."""
    choices = _choices(schema)
    if choices:
        return "|".join(map(_shown, choices))
    if "anyOf" in schema:
        return "|".join(dict.fromkeys(kind(part, root) for part in schema["anyOf"]))
    name = str(schema.get("type", "any"))
    if name == "array":
        if schema.get("prefixItems"):
            parts = (kind(resolved(p, root), root) for p in schema["prefixItems"])
            return f"[{', '.join(parts)}]"
        return f"[]{kind(resolved(schema.get('items', {}), root), root)}"
    if name == "string" and "contentEncoding" in schema:
        return "bytes"
    return name


def is_boolean(schema: Schema) -> bool:
    return schema.get("type") == "boolean"


def boolean(text: str) -> bool | None:
    """True and false as people type them, None for anything else."""
    folded = text.lower()
    return True if folded in _TRUE else False if folded in _FALSE else None


def converted(flag: str, texts: Sequence[str], schema: Schema, root: Schema) -> Any:
    """The value of a flag; of one that takes a single value the last text counts. Raises Usage that
    names the flag, what was given and what was expected."""
    if "contentEncoding" not in schema and any(_surrogates(text) for text in texts):
        raise Usage("cli", f"flag {flag}: the value is not UTF-8")
    try:
        if schema.get("type") == "array":
            return _list(texts, schema, root)
        if schema.get("type") == "object" and not texts[-1].lstrip().startswith("{"):
            return _map(texts, schema, root)
        return _one(texts[-1], schema, root)
    except _No as error:
        text, wanted = error.args
        choices = [_shown(choice) for choice in _choices(wanted)]
        if choices:
            meant = near(text, choices)
            hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
            raise Usage(
                "cli", f"flag {flag}: {text!r} is none of {', '.join(choices)}{hint}"
            ) from None
        raise Usage("cli", f"flag {flag}: {text!r} is no {kind(wanted, root)}") from None


def _list(texts: Sequence[str], schema: Schema, root: Schema) -> Any:
    if len(texts) == 1 and texts[0].lstrip().startswith("["):
        return _parsed(texts[0], schema, list)
    parts = schema.get("prefixItems") or ()
    items = resolved(schema.get("items", {}), root)
    if len(texts) == 1 and (parts or kind(items, root) not in ("object", "any")):
        texts = texts[0].split(",") if texts[0] else []
    types = [resolved(part, root) for part in parts]
    types += [items] * (len(texts) - len(types))
    return [_one(text, inner, root) for text, inner in zip(texts, types, strict=False)]


def _map(texts: Sequence[str], schema: Schema, root: Schema) -> dict[str, Any]:
    part = schema.get("additionalProperties", {})
    inner = resolved(part, root) if isinstance(part, Mapping) else {}
    pairs: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise _No(text, schema)
        pairs[name] = _one(value, inner, root)
    return pairs


def _one(text: str, schema: Schema, root: Schema) -> Any:
    for choice in _choices(schema):
        if _shown(choice) == text:
            return choice
    if _choices(schema):
        raise _No(text, schema)
    if "anyOf" in schema:
        return _any_of(text, schema, root)
    name = schema.get("type")
    if name == "string":
        return _bytes(text, schema) if "contentEncoding" in schema else text
    if name == "boolean":
        value = boolean(text)
        if value is None:
            raise _No(text, schema)
        return value
    if name == "integer":
        if not _INTEGER.fullmatch(text):
            raise _No(text, schema)
        try:
            return int(text) if text.lstrip("+-").isdigit() else int(text, 0)
        except ValueError:  # thousands of digits
            raise _No(text, schema) from None
    if name == "number":
        if not _NUMBER.fullmatch(text) or float(text) in (float("inf"), float("-inf")):
            raise _No(text, schema)
        return float(text)
    if name == "array":
        return _list([text], schema, root)
    if name == "object":
        return _parsed(text, schema, dict)
    try:
        return _json(text)
    except (ValueError, RecursionError):
        return text


def _any_of(text: str, schema: Schema, root: Schema) -> Any:
    def order(part: Schema) -> int:
        name = part.get("type")
        return _ORDER.index(name) if name in _ORDER else 0

    for part in sorted(schema["anyOf"], key=order):
        try:
            if part.get("type") == "array" and not text.lstrip().startswith("["):
                continue
            return _one(text, part, root)
        except _No:
            continue
    raise _No(text, schema)


def _parsed(text: str, schema: Schema, form: type) -> Any:
    try:
        value = _json(text)
    except (ValueError, RecursionError):
        raise _No(text, schema) from None
    if not isinstance(value, form):
        raise _No(text, schema)
    return value


def _json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _surrogates(text: str) -> bool:
    """Whether bytes that are not UTF-8 were typed."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def _bytes(text: str, schema: Schema) -> str:
    data = text.encode("utf-8", "surrogateescape")
    if text.startswith("@"):
        data = Path(text[1:]).read_bytes()
    return base64.b64encode(data).decode()


def _choices(schema: Schema) -> Sequence[Any]:
    if "const" in schema:
        return (schema["const"],)
    choices = schema.get("enum", ())
    return choices if isinstance(choices, Sequence) else ()


def _shown(choice: Any) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)
